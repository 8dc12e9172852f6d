def test_a_secret_that_others_may_read_is_a_start_failure(tmp_path: Path) -> None:
    with Locked(tmp_path) as first:
        assert first.wait_line("daemon started", START_S)
        (tmp_path / SERVER_KEY).chmod(0o640)
        first.reload(first.entries, "reload refused")
        assert first.end() == Exit.OK
    with Running(tmp_path, CONFIG) as second:
        assert second.wait_end(START_S) == Exit.CONFIG
        assert "others may use" in second.stderr
        assert os.fspath(tmp_path / SERVER_KEY) in second.stderr


@pytest.mark.parametrize(
    ("security", "consequence"), [(False, "used without `security`"), (True, "tokens in the clear")]
)
def test_insecure_is_said(tmp_path: Path, security: bool, consequence: str) -> None:
    config = CONFIG.replace("127.0.0.1:*", "0.0.0.0:*") + "insecure: true\n"
    lines = [line for line in config.splitlines() if security or not line.startswith("security")]
    make_security(tmp_path)
    with Running(tmp_path, "\n".join(lines)) as daemon:
        line = daemon.wait_line("insecure is set")
        assert (line["level"], line["security"]) == ("warning", security)
        assert consequence in line["message"]
        assert daemon.status()["daemon"]["insecure"] is True

def bind(listen: list[str], runtime_dir: Path) -> Endpoints:
    return Endpoints(listen, runtime_dir, 1 << 20, UnreadReplies(1 << 30, 30.0), 0, Connections(100))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())



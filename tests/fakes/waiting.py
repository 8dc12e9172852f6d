def wait_for(ask: Callable[[], T], good: Callable[[T], object]) -> T:
    """Asks every 10 ms until the answer is good."""
    until = time.monotonic() + WAIT_S
    while not good(answer := ask()):
        assert time.monotonic() < until, f"still {answer} after {WAIT_S} s"
        time.sleep(0.01)
    return answer



"""How a check says what came of it: one line, which tests/deploy/run counts."""


def ok(name):
    print(f"ok      {name}", flush=True)


def failed(name, why):
    print(f"FAILED  {name}: {' '.join(str(why).split())[:600]}", flush=True)


def check(name, faults):
    """One check that holds if there are no faults."""
    failed(name, "; ".join(map(str, faults))) if faults else ok(name)

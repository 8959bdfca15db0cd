"""How the generated networks ended, summed up below the tests: how many maps, and how many refusals of each kind."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    """Add up what the tests recorded, also those of other processes."""
    outcomes = Counter()
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "siege":
                    outcomes.update(value)
    if outcomes:
        terminalreporter.section(f"siege: {sum(outcomes.values())} combinations")
        for outcome, number in outcomes.most_common():
            terminalreporter.write_line(f"{number:6} {outcome}")

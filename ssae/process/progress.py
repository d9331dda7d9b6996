"""The bar that is shown while something takes long; that of training is Lightning's."""

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

PERCENTAGE = "{task.percentage:>3.0f}%"


def progress_bar(what: str, total: float, done: str | ProgressColumn = PERCENTAGE) -> Progress:
    """Return a bar of one task, `[task] = bar.tasks`, to be entered.

    Args:
        what: is done, such as "harvesting".
        total: at which `completed` of the task is all of it.
        done: the column that says how far it is.

    Returns:
        The bar; `bar.update(task.id, completed=..., rate=...)` moves it, and shows the text `rate`.
    """
    columns = TextColumn("{task.description}"), BarColumn(), done
    bar = Progress(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar.add_task(what, total=total, rate="")
    return bar


def token_rate(task: Task, num_tokens: int, each: str = "") -> str:
    """Return "1,234 tokens, 567 tokens/s".

    Args:
        task: whose time is counted, since its bar was made.
        num_tokens: that are done.
        each: what was done with each of them, behind the first "tokens".
    """
    rate = num_tokens / max(task.elapsed or 0, 1e-3)
    return f"{num_tokens:,} tokens{each}, {rate:,.0f} tokens/s"

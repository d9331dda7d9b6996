"""The jobs of an array: a line for each, whose words are its overrides, quoted as in a shell.

    lines.py FILE           prints how many there are; refuses a file with a line that is wrong
    lines.py FILE NUMBER    prints the words of one, each ended by a zero byte

Empty lines and what follows a # do not count.
"""

import re
import shlex
import sys

OVERRIDE = re.compile(r"~[\w./@]+|[+~]{0,2}[\w./@]+=.*", re.DOTALL)


def jobs(path: str) -> "list[list[str]]":
    """Return the words of every job.

    Raises:
        SystemExit: names the line that is wrong, and why.
    """
    found = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                words = shlex.split(line.strip(), comments=True)
            except ValueError as error:
                sys.exit(f"{where}: {error}: {line.strip()}; quote it as in a shell")
            wrong = [word for word in words if not OVERRIDE.fullmatch(word)]
            if wrong:
                sys.exit(f"{where}: {wrong[0]!r} is no override; write key=value")
            if words:
                found.append(words)
    if not found:
        sys.exit(f"{path} has no line with overrides; write one for every job")
    return found


def main() -> None:
    """Print what was asked for."""
    path, *number = sys.argv[1:]
    found = jobs(path)
    if not number:
        print(len(found))  # noqa: T201
    elif not 1 <= int(number[0]) <= len(found):
        sys.exit(f"{path} has jobs 1 to {len(found)}, not {number[0]}; set --array")
    else:
        sys.stdout.write("".join(word + "\0" for word in found[int(number[0]) - 1]))


if __name__ == "__main__":
    main()

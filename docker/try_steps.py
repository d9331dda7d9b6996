"""Execute the steps of docker/Dockerfile where no container engine runs: a chroot for every stage.

    python docker/try_steps.py <empty folder> [--arg CPU_INDEX=] [--bind /opt/wheels]

As root, with debootstrap, which makes what FROM debian:12-slim stands for. Downloads go where those
of this machine go: its apt sources, resolver and pip settings are lent to the stages. At the end
the image's user runs `ssae` in it. What this does not show: BuildKit, layers, the CUDA base.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]
LENT = ("etc/resolv.conf", "etc/hosts", "etc/ssl", "etc/pip.conf", "etc/apt")
CERTIFICATES = "/etc/lent.crt"
"""Those of this machine, under a name that the package ca-certificates does not write to."""
TRIED = (
    "id",
    "ssae --version",
    "ssae --help",
    "ssae run generalist.num_tokens=40_000 generalist.budget_tokens=20_000 budget_tokens=20_000 "
    "specialist.num_tokens=20_000 evaluation_tokens=5000 frequency_tokens=20_000 num_bootstraps=50",
)


class Stage:
    """A root folder, and what the instructions so far have set in it."""

    def __init__(self, root: Path, parent: "Stage | None" = None) -> None:
        self.root = root
        self.env: dict[str, str] = dict(parent.env) if parent else {}
        self.arguments: dict[str, str] = {}
        self.folder, self.user = "/", "0"
        self.shell = ["/bin/sh", "-c"] if parent is None else parent.shell
        self.entrypoint: list[str] = []

    def run(self, command: str, binds: list[str]) -> None:
        """Run a command as RUN does, in a mount namespace that ends with it."""
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
        for path in binds:
            (self.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {path} .{path}")
        chroot = ["chroot", f"--userspec={self.user}:{self.user}", ".", "/usr/bin/env", "-i"]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        lent = {k: v for k, v in os.environ.items() if re.match("PIP_|[a-z]+_proxy$", k, re.I)}
        home = "/root" if self.user == "0" else "/home/ssae"
        env = (
            {"PATH": path, "HOME": home}
            | lent
            | {"PIP_CERT": CERTIFICATES}
            | self.arguments
            | self.env
        )
        words = [f"{key}={value}" for key, value in env.items()]
        inside = f"cd {shlex.quote(self.folder)} && {command}"
        script = "; ".join(["set -e", f"cd {self.root}", *mounts])
        script += f"; exec {shlex.join([*chroot, *words, *self.shell, inside])}"
        subprocess.run(["unshare", "--mount", "bash", "-c", script], check=True)

    def expand(self, text: str) -> str:
        """Return a text with the variables of ARG and ENV in it."""
        known = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return Template(text).safe_substitute(known | self.arguments | self.env)


def debian(root: Path, release: str) -> None:
    """Make what FROM debian:<release>-slim stands for."""
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(path.read_text() for path in lists if path.is_file())
    found = re.findall(r"^(?:deb\s+(?:\[.*?\]\s+)?|URIs:\s*)(\S+/debian/?)\s", text, re.MULTILINE)
    mirror = found[:1]
    names = {"12": "bookworm", "13": "trixie"}
    subprocess.run(
        ["debootstrap", "--variant=minbase", names[release], root, *mirror],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for name in LENT:
        source, target = Path("/", name), root / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
        elif source.exists():
            shutil.copy(source, target)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / CERTIFICATES.lstrip("/"))


def execute(target: Path, arguments: dict[str, str], binds: list[str]) -> Stage:
    """Execute the Dockerfile and return its last stage."""
    parser = DockerfileParser(str(REPOSITORY / "docker/Dockerfile"))
    stages: dict[str, Stage] = {}
    shared: dict[str, str] = {}
    stage: Stage | None = None
    for step in parser.structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "COMMENT":
            continue
        start = time.monotonic()
        if instruction == "ARG":
            name, _, default = value.partition("=")
            given = arguments.get(name, shared.get(name, default) if stage else default)
            (shared if stage is None else stage.arguments)[name] = given
        elif instruction == "FROM":
            base, _, name = Template(value).safe_substitute(shared).partition(" AS ")
            root = target / name
            if base in stages:
                stage = Stage(root, stages[base])
                subprocess.run(["cp", "-a", stages[base].root, root], check=True)
            elif base.startswith("debian:"):
                stage = Stage(root)
                debian(root, base.removeprefix("debian:").removesuffix("-slim"))
            else:
                continue  # the base of the other device
            stages[name] = stage
        assert stage is not None or instruction == "ARG"
        if stage is None:
            continue
        match instruction:
            case "ENV":
                for word in shlex.split(value):
                    name, _, content = word.partition("=")
                    stage.env[name] = stage.expand(content)
            case "SHELL":
                stage.shell = json.loads(value)
            case "RUN":
                stage.run(value, binds)
            case "WORKDIR":
                stage.folder = value
                (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = value
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case "COPY":
                copy(stage, stages, value)
        print(f"{time.monotonic() - start:7.1f} s  {instruction} {value[:90]}", flush=True)  # noqa: T201
    assert stage is not None
    return stage


def copy(stage: Stage, stages: dict[str, Stage], value: str) -> None:
    """Copy as COPY does; of the clone, what docker/Dockerfile.dockerignore lets through."""
    words = value.split()
    origin = REPOSITORY
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")].root
    *sources, destination = words
    target = stage.root / Path(stage.folder, destination).as_posix().lstrip("/")
    for name in sources:
        source = origin / name.lstrip("/")
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__") if origin == REPOSITORY else None
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)


def main() -> None:
    """Execute the steps, then try what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--arg", action="append", default=[], help="a build argument, NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], help="a folder of this machine")
    given = parser.parse_args()
    if given.target.exists():
        parser.error(f"{given.target} exists; name a folder that does not")
    given.target.mkdir(parents=True)
    stage = execute(given.target, dict(word.split("=", 1) for word in given.arg), given.bind)
    assert stage.user != "0", "the image runs as root"
    for command in TRIED:
        print(f"--- {command}", flush=True)  # noqa: T201
        stage.run(command, [])  # without what was lent to the build
    size = subprocess.run(["du", "-sm", stage.root], capture_output=True, text=True, check=True)
    print(f"--- the image: {size.stdout.split()[0]} MB")  # noqa: T201


if __name__ == "__main__":
    main()

"""Blocks of README and docs/ that a reader copies: configuration and commands."""

import re
import shlex
import tomllib

from . import generate

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHERS = {"scenario", "model", "worker"}


def pages(root):
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def configs(page):
    """The proxy configurations of a page, each as a whole file."""
    whole = []
    for language, info, text in BLOCK.findall(page.read_text()):
        if language != "toml" or info.strip() in OTHERS:
            continue
        after = re.fullmatch(r" after=(\d+)", info)
        if after:
            text = f"{whole[int(after[1]) - 1]}\n{text}"
        elif info.strip():
            raise SystemExit(f"{page}: expected after=N, scenario, model or worker after toml, found {info!r}")
        whole.append(text)
    return whole


def write_configs(root, folder):
    count = 0
    for page in pages(root):
        for number, text in enumerate(configs(page), 1):
            (folder / f"{page.stem}-{number}.toml").write_text(text)
            count += 1
    if not count:
        raise SystemExit("expected blocks of configuration, found none")


def check(root, programs):
    wrong = []
    flags = known_flags(programs) if programs else None
    for page in pages(root):
        name = page.relative_to(root)
        configs(page)
        for language, _, text in BLOCK.findall(page.read_text()):
            if language == "toml":
                try:
                    tomllib.loads(text)
                except tomllib.TOMLDecodeError as error:
                    wrong.append(f"{name}: TOML block: {error}")
            elif language == "sh":
                wrong.extend(f"{name}: {problem}" for problem in commands(root, text, flags))
    return wrong


def known_flags(programs):
    """The flags of each program and command, from their help."""
    found = {}
    for program, names in generate.PROGRAMS.items():
        general = generate.help_of(programs, program)
        for command in [None, *names]:
            text = general + (generate.help_of(programs, program, command) if command else "")
            found[program, command] = set(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", text))
    return found


def whole_commands(text):
    """The commands of a block; one may have several lines, within quotes or by a backslash at their ends."""
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += f"{line}\n"
        try:
            shlex.split(waiting, comments=True)
        except ValueError:
            continue
        yield waiting
        waiting = ""
    if waiting:
        yield waiting


def commands(root, text, flags):
    """What is wrong with the command lines of a block: files that do not exist, flags that no program has."""
    for line in whole_commands(text):
        try:
            line = shlex.split(line, comments=True)
        except ValueError as error:
            yield f"command {line!r}: {error}"
            continue
        for word in line:
            path = re.sub(r"^@|:.*$", "", word)
            known = re.match(r"(backends|conf|examples|loadtest|systemd|tests|\.ci)/", path)
            if known and "*" not in path and not (root / path).exists():
                yield f"{path} does not exist"
        if line[:1] == ["cargo"] and "--" in line and "forebay-loadtest" in line:
            line = ["forebay-load", *line[line.index("--") + 1 :]]
        line = [word.rpartition("target/release/")[2] for word in line]
        if flags and line and line[0] in generate.PROGRAMS:
            program, words = line[0], [" ".join(line[1:3]), line[1] if len(line) > 1 else None]
            command = next((word for word in words if (program, word) in flags), None)
            if line[:2] == ["forebay", "worker"]:
                program, command = "forebay-worker", None
            for word in line[1:]:
                flag = word.split("=")[0]
                if re.match(r"--?[a-zA-Z]", flag) and flag not in flags[program, command]:
                    yield f"{program} {command or ''}: no flag {flag}"

"""The generated parts of README and docs/: reasons, metrics, log fields, keys, help, figures."""

import http
import os
import re
import subprocess

from . import figures

REASONS = "crates/protocol/src/names/reason.rs"
METRICS = "crates/protocol/src/names/metric.rs"
ACCESS_LOG = "src/telemetry/access_log.rs"
SCENARIO = "loadtest/reference.toml"
# One entry: documentation, then `Name = "code", STATUS, GrpcCode, Blame, retryable;`
REASON = re.compile(r"((?:^ *///[^\n]*\n)+) *\w+ = \"(\w+)\", (\w+), (\w+), (\w+), (true|false);", re.MULTILINE)
# One family: documentation, then `Kind NAME = "name" [labels];`
FAMILY = re.compile(r"((?:^ *///[^\n]*\n)+) *(\w+) \w+ =\s*\"(\w+)\"\s*\[([^\]]*)\];", re.MULTILINE)
FIELD = re.compile(r"((?:^ *///[^\n]*\n)+)(?: *#\[[^\n]*\n)* *pub (\w+): ([^\n]+),\n", re.MULTILINE)
KINDS = {"String": "text", "str": "text", "u16": "number", "u8": "number", "u32": "number", "u64": "number", "usize": "number", "StepLog": "list", "ShadowEntry<'a": "object"}
# Programs, and the commands of each that have a help of their own.
PROGRAMS = {
    "forebay": ["serve", "check", "drain", "undrain", "cache stats", "cache purge", "rollout weight", "rollout list", "rollout status", "rollout start", "rollout pause", "rollout resume", "rollout promote", "rollout abort"],
    "forebay-worker": ["--synthetic"],
    "forebay-load": ["run", "capacity", "compare", "sim", "report", "reference"],
}
# Files that a program writes as a whole.
FILES = {
    "conf/reference.toml": ["forebay", "check", "--reference=toml"],
    "docs/reference/configuration.md": ["forebay", "check", "--reference=markdown"],
    "conf/worker.toml": ["forebay-worker", "--reference"],
    "loadtest/reference.toml": ["forebay-load", "reference"],
}


def words(documentation):
    """The text of a doc comment in one line, fit for a table."""
    text = " ".join(line.strip().removeprefix("///").strip() for line in documentation.splitlines())
    return re.sub(r"\[(`[^`\]]+`)\](?:\([^)]*\))?", r"\1", text).replace("|", "\\|")


def complete(root, file, pattern, rows):
    """Ends the program if the source has more entries than were understood."""
    expected = len(re.findall(pattern, (root / file).read_text(), re.MULTILINE))
    if not 0 < expected == rows:
        raise SystemExit(f"{file}: expected {expected} documented entries, found {rows}")


def reasons(root):
    lines = ["| reason | status | gRPC | blame | retry | meaning |", "|---|---|---|---|---|---|"]
    for documentation, code, status, grpc, blame, retry in REASON.findall((root / REASONS).read_text()):
        number = http.HTTPStatus[{"PAYLOAD_TOO_LARGE": "REQUEST_ENTITY_TOO_LARGE"}.get(status, status)]
        grpc = re.sub(r"(?<!^)([A-Z])", r"_\1", grpc).upper()
        retry = "yes" if retry == "true" else "no"
        lines.append(f"| `{code}` | {int(number)} | {grpc} | {blame.lower()} | {retry} | {words(documentation)} |")
    complete(root, REASONS, r"^ *\w+ = \"\w+\", ", len(lines) - 2)
    return "\n".join(lines)


def metrics(root, module):
    text = (root / METRICS).read_text()
    complete(root, METRICS, r"^ *(?:Counter|Gauge|Histogram) ", len(FAMILY.findall(text)))
    part = re.search(rf"^pub mod {module} \{{(.*?)^\}}", text, re.DOTALL | re.MULTILINE)[1]
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for documentation, kind, name, labels in FAMILY.findall(part):
        labels = ", ".join(f"`{label.strip()}`" for label in labels.split(",") if label.strip())
        lines.append(f"| `{name}` | {kind.lower()} | {labels} | {words(documentation)} |")
    return "\n".join(lines)


def log_fields(root, struct):
    text = (root / ACCESS_LOG).read_text()
    part = re.search(rf"^pub struct {struct}[^\n]*\{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)[1]
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for documentation, name, kind in FIELD.findall(part):
        optional = " or null" if kind.startswith("Option<") else ""
        plain = re.sub(r"Option<|>|&'\w+ |&", "", kind)
        lines.append(f"| `{name}` | {KINDS[plain]}{optional} | {words(documentation)} |")
    if len(lines) - 2 != part.count("pub "):
        raise SystemExit(f"{ACCESS_LOG}: expected a documented field of a known type each in {struct}")
    return "\n".join(lines)


def scenario(root):
    """The keys of a scenario, as a test of the load generator holds them to its code."""
    return f"```toml scenario\n{(root / SCENARIO).read_text().strip()}\n```"


def output_of(programs, program, *arguments):
    """What a program prints without a terminal: 100 columns, nothing of this machine's environment."""
    # NO_COLOR: no escape sequences.
    environment = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "COLUMNS": "100"}
    arguments = [programs / program, *arguments]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout


def help_of(programs, program, command=None):
    text = output_of(programs, program, *(command.split() if command else []), "--help")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def command_lines(programs):
    parts = []
    for program, commands in PROGRAMS.items():
        parts.append(f"## {program}\n\n```text\n{help_of(programs, program)}\n```")
        for command in commands:
            text = help_of(programs, program, command)
            parts.append(f"### {program} {command}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def parts(root, programs):
    """(file, name, text) of every generated part; without `programs` none of their help."""
    reference = root / "docs/reference"
    yield reference / "reasons.md", "reasons", reasons(root)
    for module in ("proxy", "worker"):
        yield reference / "metrics.md", f"metrics {module}", metrics(root, module)
    for struct in ("Entry", "ConnectionEntry"):
        yield reference / "access-log.md", f"log {struct}", log_fields(root, struct)
    yield reference / "scenario.md", "scenario", scenario(root)
    yield root / "docs/benchmarks.md", "figures", figures.summary(root)
    yield root / "README.md", "figures", figures.headlines(root)
    if programs:
        yield reference / "cli.md", "cli", command_lines(programs)


def replaced(file, name, text):
    """The file's text before and after a generated part is put into it."""
    before = file.read_text()
    pattern = rf"(<!-- {re.escape(name)}: generated by [^\n]*-->\n).*?(<!-- end of {re.escape(name)} -->)"
    after, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{file}: expected one place for the generated part {name!r}, found {count}")
    return before, after


def whole_files(root, programs):
    """(file, text) of every file that a program writes."""
    for name, command in FILES.items() if programs else ():
        yield root / name, output_of(programs, *command)


def write(root, programs):
    # Parts of pages are taken from some of these.
    for file, text in whole_files(root, programs):
        if file.read_text() != text:
            file.write_text(text)
            print(f"{file.relative_to(root)}: wrote the file")
    for file, name, text in parts(root, programs):
        before, after = replaced(file, name, text)
        if before != after:
            file.write_text(after)
            print(f"{file.relative_to(root)}: wrote {name}")


def check(root, programs):
    wrong = []
    for file, text in whole_files(root, programs):
        if file.read_text() != text:
            wrong.append(f"{file.relative_to(root)} differs from its source; run .ci/generate")
    for file, name, text in parts(root, programs):
        before, after = replaced(file, name, text)
        if before != after:
            wrong.append(f"{file.relative_to(root)}: {name!r} differs from its source; run .ci/generate")
    return wrong

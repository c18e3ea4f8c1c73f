"""Phrases that docs/writing-style.md forbids, in pages, comments, doc comments and messages."""

import re
import subprocess

# The page that lists them.
RULES = "docs/writing-style.md"
# A sentence whose subject is a clause: "What ends it ...", "Who fails ...". A question may begin so.
CLAUSE = re.compile(r"(?:^|(?<=[.:!?] ))(?:What|Who|Whoever|Whose|Nobody)\b[^.?!]*(?:[.!]|$)")
WORDS = re.compile(r"\b(?:whoever|nobody|anew|for ever|be it)\b", re.IGNORECASE)
COMMENT = {
    ".rs": re.compile(r"^\s*//[/!]?(?: |$)(.*)$"),
    ".toml": re.compile(r"^\s*#(?: |$)(.*)$"),
    ".sh": re.compile(r"^\s*#(?: |$)(.*)$"),
    ".py": re.compile(r"^\s*#(?: |$)(.*)$"),
}
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


def files(root):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        file = root / name
        if name != RULES and (file.suffix in COMMENT or file.suffix == ".md") and file.is_file():
            yield name, file


def prose(suffix, text):
    """(line number, paragraph) of each paragraph of prose; code and tables are left out."""
    start, words, fenced = 0, [], False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if suffix == ".md":
            if line.startswith("```"):
                fenced = not fenced
            found = "" if fenced or line.startswith(("```", "|", "#", "<!--")) else re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", line)
        else:
            comment = COMMENT[suffix].match(line)
            found = comment[1].strip() if comment else ""
        item = found.startswith(("\n", "- ", "* ", "|"))
        if words and (item or not found.strip()):
            yield start, " ".join(words)
            words = []
        if found.strip():
            start = start if words else number
            words.append(found.strip().lstrip("-* "))


def check(root):
    wrong = []
    for name, file in files(root):
        text = file.read_text()
        for line, paragraph in prose(file.suffix, text):
            plain = re.sub(r"`[^`]*`", "`x`", paragraph)
            for found in CLAUSE.findall(plain):
                wrong.append(f"{name}:{line}: a sentence begins with a clause: {found[:60]!r} (docs/writing-style.md)")
            for found in WORDS.findall(plain):
                wrong.append(f"{name}:{line}: {found!r} (docs/writing-style.md)")
        # Messages.
        if file.suffix == ".rs" and "tests" not in name:
            for number, line in enumerate(text.split("#[cfg(test)]")[0].splitlines(), 1):
                for literal in LITERAL.findall(line):
                    for found in WORDS.findall(literal):
                        wrong.append(f"{name}:{number}: {found!r} in a message (docs/writing-style.md)")
    return wrong

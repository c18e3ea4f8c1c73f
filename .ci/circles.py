#!/usr/bin/env python3
"""Find import circles between the source files of each crate.

circles.py             fail unless the circles are exactly those listed in .ci/circles.txt
circles.py CRATE...    show every circle of these crates (`src`, `loadtest`, `crates/routing`, ...) and the
                       imports that make it; listed or not
circles.py --write     bring the list up to date; refused if a crate has more files in circles than listed

Two files that import each other can only be read, moved and tested together. An import is a path in the
code: `use crate::a::B`, `super::b::f()`, `child::C`. It leads to the file that *defines* the item, so a
re-export (`pub use`) on the way is neither the end of a path nor an import of its own. Declaring a child
(`mod child;`) is no import. Tests don't count. Method calls name no file and can't be seen.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIST = ROOT / ".ci" / "circles.txt"
HEADER = """\
# Import circles that .ci/circles.py tolerates: one file a line, a blank line between circles.
# The list may only shrink. `.ci/circles.py --write` brings it up to date after a cut or a rename.
"""
TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|b?c?r(?P<hashes>\#*)".*?"(?P=hashes)|[bc]?"(?:\\.|[^"\\])*"
               |b?'(?:\\(?:x..|u\{[^}]*\}|.)|[^'\\])'|'\w+|\d\w*)
      |(?P<block>/\*)
      |(?:r\#)?(?P<name>[A-Za-z_]\w*)
      |(?P<other>::|.)""",
    re.DOTALL | re.VERBOSE,
)
OUTSIDE = "outside of this crate"
DEFINES = {"struct", "enum", "union", "trait", "fn", "const", "static", "type", "macro_rules"}


class Module:
    """One module, in a file of its own or written inside another's."""

    def __init__(self, file, folder, parent=None):
        self.file, self.folder, self.parent = file, folder, parent
        self.root = parent.root if parent else self
        self.children, self.items, self.used = {}, set(), set()
        self.macros = {}  # of the root: macros with `#[macro_export]`, and the module of each
        self.imports = []  # (path, name or "*", public, line) of each leaf of each `use`
        self.paths = []  # (path, line) of each `a::b` in the code


def tokens(text):
    """Words and signs with their lines; no comments, strings, numbers, lifetimes."""
    found, at, line = [], 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        end = match.end()
        if match["block"]:  # comments in comments are allowed
            depth = 1
            while depth and end < len(text):
                depth += {"/*": 1, "*/": -1}.get(text[end : end + 2], 0)
                end += 2 if text[end : end + 2] in ("/*", "*/") else 1
        elif match["name"] or match["other"]:
            found.append((match["name"] or match["other"], line))
        line += text.count("\n", at, end)
        at = end
    return found


def after(words, i):
    """The index behind the group that is opened at `i`."""
    depth = 0
    while i < len(words):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(words[i], 0)
        i += 1
        if depth == 0:
            break
    return i


def after_item(words, i):
    """The index behind the item at `i`, its further attributes included."""
    while i < len(words) and words[i] not in (";", "{", "}"):
        i = after(words, i) if words[i] in ("(", "[") else i + 1
    return after(words, i) if i < len(words) and words[i] == "{" else i + 1


def leaves(words, i, prefix):
    """(path, name) of each leaf of the use tree at `i`, and the index behind it."""
    path, found = list(prefix), []
    while True:
        if words[i] == "{":
            i += 1
            while words[i] != "}":
                inner, i = leaves(words, i, path)
                found += inner
                i += words[i] == ","
            return found, i + 1
        if words[i] == "*":
            return [(path, "*")], i + 1
        if words[i] not in ("::", "$"):
            path.append(words[i])
        i += 1
        if words[i] == "as":
            return [(path, words[i + 1])], i + 2
        if words[i - 1] not in ("::", "$") and words[i] != "::":
            if path[-1] == "self" and len(path) > 1:
                path.pop()
            return [(path, path[-1])], i


def read(file, module):
    """Fill `module` and its children from `file`."""
    found = tokens(file.read_text())
    words, lines = [word for word, _ in found], [line for _, line in found]
    words.append("")
    open_modules = []  # (module around, depth at which this one ends)
    i = depth = 0
    path_of_next = None
    while i < len(found):
        word, at_top = words[i], depth == (open_modules[-1][1] if open_modules else 0)
        if word == "#" and words[i + 1] == "[":
            end = after(words, i + 1)
            attribute = words[i + 2 : end - 1]
            if attribute[:2] == ["cfg", "("] and "test" in attribute and "not" not in attribute:
                i = after_item(words, end)
                continue
            if attribute == ["macro_export"]:
                module.root.macros[words[words.index("macro_rules", end) + 2]] = module
            if attribute[:1] == ["path"]:
                line = file.read_text().splitlines()[lines[i] - 1]
                path_of_next = re.search(r'"(.*)"', line)[1]
        if word == "{":
            depth += 1
        elif word == "}":
            if open_modules and open_modules[-1][1] == depth:
                module = open_modules.pop()[0]
            depth -= 1
        elif word == "mod" and at_top and words[i + 2] in (";", "{"):
            name = words[i + 1]
            if words[i + 2] == "{":
                module.children[name] = Module(file, module.folder / name, module)
                depth += 1
                open_modules.append((module, depth))
                module = module.children[name]
            else:
                declare(module, name, path_of_next)
            path_of_next = None
            i += 3
            continue
        elif word == "use" and words[i + 1] != "<":
            public, line = words[i - 1] in ("pub", ")"), lines[i]
            use, i = leaves(words, i + 1, [])
            module.imports += [(path, name, public, line) for path, name in use]
            continue
        elif word in DEFINES and at_top:
            module.items.add(words[i + 2] if words[i + 1] in ("mut", "!", "fn") else words[i + 1])
        elif words[i + 1] == "::" and words[i - 1] not in ("::", ".") and words[i - 2 : i] != ["(", "in"]:
            path, i, line = [word], i + 1, lines[i]
            while words[i] == "::" and re.match(r"\w", words[i + 1]):
                path.append(words[i + 1])
                i += 2
            module.paths.append((path, line))
            module.used.add(word)
            continue
        if words[i - 1] != ".":
            module.used.add(word)
        i += 1


def declare(module, name, path):
    """The child that `mod name;` declares."""
    if path:
        file, folder = module.file.parent / path, module.file.parent
    else:
        file, folder = module.folder / f"{name}.rs", module.folder / name
        if not file.exists():
            file = folder / "mod.rs"
    if file.exists():  # absent: written by a build script
        module.children[name] = Module(file, folder, module)
        read(file, module.children[name])


def resolve(module, path, seen=()):
    """The module that `path`, written in `module`, ends at or in, and the item there: None for the module
    itself. None for what isn't in this crate."""
    first, rest = path[0], path[1:]
    if first == "crate":
        here = module.root
    elif first == "self":
        here = module
    elif first == "super":
        here = module.parent
    else:
        here, rest = module, path
        if not binds(module, first, seen):
            return None
    for i, name in enumerate(rest):
        if name == "super":
            here = here.parent
        elif name in here.children:
            here = here.children[name]
        elif name in here.items or name in here.macros:
            return here.macros.get(name, here), name
        else:
            target = imported(here, name, seen)
            if target == OUTSIDE:
                return None
            if target is None or target[1] is not None:
                return target or (here, name)  # a macro may have made it
            here = target[0]
    return here, None


def binds(module, name, seen):
    """Whether `name` means something of this crate in `module`."""
    if name in module.children or name in module.items:
        return True
    return imported(module, name, seen) not in (None, OUTSIDE)


def imported(module, name, seen):
    """What a `use` in `module` binds `name` to: as `resolve` has it, or OUTSIDE. None if there is none."""
    if (module, name) in seen:
        return None
    seen = (*seen, (module, name))
    for path, bound, _, _ in module.imports:
        if bound == name:
            return resolve(module, path, seen) or OUTSIDE
    for path, bound, _, _ in module.imports:
        target = resolve(module, path, seen) if bound == "*" else None
        if target and target[1] is None and binds(target[0], name, seen):
            return resolve(target[0], ["self", name], seen)
    return None


def edges(module, found):
    """Fill `found`: (importing file, imported file) -> [(line, path)], for `module` and all below it."""

    def note(path, line):
        target = resolve(module, path)
        # A module alone says nothing yet: the paths that begin with its name do.
        if target and target[1] is not None and target[0].file != module.file:
            found.setdefault((module.file, target[0].file), []).append((line, "::".join(path)))

    for path, name, public, line in module.imports:
        if name == "*":
            target = resolve(module, path)
            if target and target[1] is None:
                taken = target[0].items | {bound for _, bound, _, _ in target[0].imports}
                for item in sorted(taken & module.used):
                    note([*path, item], line)
        elif not public or name in module.used:
            note(path, line)
    for path, line in module.paths:
        # `Type::f`, and names that come from a `use` of the item itself, are counted there.
        target = resolve(module, path[:1])
        if target and target[1] is None:
            note(path, line)
    for child in module.children.values():
        edges(child, found)


def components(graph):
    """The strongly connected components of more than one file: Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def circles(crate):
    """Each circle of a crate: its files, and the imports between them."""
    found = {}
    source = ROOT / (crate if crate == "src" else f"{crate}/src")
    for root in (source / "lib.rs", source / "main.rs"):
        if root.exists():
            module = Module(root, source)
            read(root, module)
            edges(module, found)
    graph = {}
    for importing, imported_file in found:
        graph.setdefault(importing, set()).add(imported_file)
    graph = {file: sorted(others) for file, others in graph.items()}
    return [
        (files, {pair: uses for pair, uses in found.items() if set(pair) <= set(files)}) for files in components(graph)
    ]


def short(file):
    return file.relative_to(ROOT).as_posix()


def show(files, imports):
    print(f"\ncircle of {len(files)} files: {' '.join(map(short, files))}")
    for (importing, imported_file), uses in sorted(imports.items()):
        print(f"  {short(importing)} imports {short(imported_file)}")
        for line, path in sorted(set(uses)):
            print(f"    line {line}: {path}")


def listed():
    """The circles in the list: each a set of files."""
    text = "\n".join(line for line in LIST.read_text().splitlines() if not line.startswith("#"))
    return [frozenset(circle.split()) for circle in text.strip().split("\n\n") if circle.strip()]


def crate_of(file):
    return file.split("/src/")[0] if "/src/" in file else "src"


def sizes(circles_of_files):
    """How many files of each crate are in circles."""
    count = {}
    for files in circles_of_files:
        crate = crate_of(next(iter(files)))
        count[crate] = count.get(crate, 0) + len(files)
    return count


def main(arguments):
    crates = ["src", "loadtest"]
    crates += sorted(short(folder.parent) for place in ("crates", "backends") for folder in ROOT.glob(f"{place}/*/src"))
    unknown = [name for name in arguments if name not in crates and name != "--write"]
    if unknown:
        sys.exit(f"expected --write or some of {', '.join(crates)}, found {', '.join(unknown)}")
    if arguments and arguments != ["--write"]:
        for crate in arguments:
            found = circles(crate)
            print(f"{crate}: {len(found)} circles")
            for files, imports in found:
                show(files, imports)
        return 0

    found = {}
    for crate in crates:
        of_crate = circles(crate)
        for files, imports in of_crate:
            found[frozenset(map(short, files))] = files, imports
        count = " + ".join(str(len(files)) for files, _ in of_crate)
        print(f"{crate}: {f'{len(of_crate)} circles, files {count}' if of_crate else 'no circle'}")

    allowed = listed()
    if arguments:
        before, now = sizes(allowed), sizes(found)
        grown = [crate for crate in now if now[crate] > before.get(crate, 0)]
        if grown and allowed:
            sys.exit(f"not written: more files in circles than before in {', '.join(grown)}; cut them instead")
        paragraphs = ["\n".join(sorted(files)) + "\n" for files in sorted(found, key=sorted)]
        LIST.write_text("\n".join([HEADER, *paragraphs]))
        return 0

    new, gone = [files for files in found if files not in allowed], [files for files in allowed if files not in found]
    for files in new:
        show(*found[files])
    for files in gone:
        print(f"\nlisted in {short(LIST)}, but no circle (any more): {' '.join(sorted(files))}")
    if new or gone:
        smaller = bool(gone) and all(any(files < other for other in gone) for files in new)
        print("\nrun .ci/circles.py --write and commit the shorter list" if smaller else "\ncut the new circles")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

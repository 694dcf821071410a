"""Pages made of what is written elsewhere: parsers, recipe dataclasses, READMEs, CONTRIBUTING."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from cfpose_sdk.boxes import iou_matrix

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "cfpose": "cfpose_sdk.cli.main",
    "cfpose-train": "cfpose_training.cli",
    "cfpose-export": "cfpose_export.cli",
    "cfpose-bench": "cfpose_bench.cli",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_PAGES = {  # file → the page that holds it or says the same
    "README.md": "../start.md",
    "cfpose_sdk/models/README.md": "zoo.md",
    "export/README.md": "../export.md",
    "training/README.md": "../runs.md",
    "benchmarks/README.md": "runtimes.md",
    "CONTRIBUTING.md": "architecture.md",
}


def write_all(folder: Path) -> None:
    """Write every generated page whose text changed, and remove those that are no longer made."""
    folder.mkdir(exist_ok=True)
    pages = dict(_pages())
    for file in folder.glob("*.md"):
        if file.stem not in pages:
            file.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _pages() -> Iterator[tuple[str, str]]:
    for command, module in COMMANDS.items():
        yield f"command-{command}", command_page(command, importlib.import_module(module)._parser())
    yield "recipe", recipe_page()
    yield "runtimes", page_of("benchmarks/README.md", "Runtimes side by side")
    yield "architecture", page_of("CONTRIBUTING.md", "Architecture")
    card = page_of("cfpose_sdk/models/README.md", "Model zoo")
    yield "zoo", card.replace("# Model zoo\n", f"# Model zoo\n\n{_ZOO}\n", 1)
    yield "gallery", gallery_page()
    yield "changes", page_of("CHANGELOG.md", "Changes")


_ZOO = (
    "What ships inside the package comes first; any file that `cfpose-export adopt` takes joins it "
    "under the licence that you state ([the way](../adopt.md)). Weights have terms of their own, "
    "which `cfpose-export inspect FILE` prints from the file itself."
)


def command_page(command: str, parser: argparse.ArgumentParser) -> str:
    """A section for each sub-command, with a table of its options."""
    parts = [f"# {command}", _text(parser.description or ""), _epilog(parser), _options(parser)]
    parts += _sections(command, parser)
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, each in action.choices.items():
            yield f"## {command} {name}"
            yield _text(each.description or helps.get(name, ""))
            yield f"```text\n{_usage(each)}\n```"
            yield _options(each)
            yield _epilog(each)
            yield from _sections(f"{command} {name}", each)


def _usage(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    return textwrap.fill(usage, 88, subsequent_indent="    ", break_on_hyphens=False)


def _epilog(parser: argparse.ArgumentParser) -> str:
    return _text(" ".join((parser.epilog or "").split()))


def _options(parser: argparse.ArgumentParser) -> str:
    rows = ["| option | default | |", "|---|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        default = action.default if action.option_strings and action.nargs != 0 else None
        shown = "" if default in (None, argparse.SUPPRESS, [], ()) else f"`{_plain(default)}`"
        help_text = re.sub(r" ?\(default: %\(default\)s\)", "", action.help or "")
        if action.choices:
            help_text += f"; one of: {', '.join(map(str, action.choices))}"
        rows.append(f"| `{names}` | {shown} | {_text(help_text.lstrip('; '))} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _plain(value: object) -> str:
    text = str(value)  # a path inside this checkout is nobody else's
    return Path(text).name if str(ROOT) in text else text


def _text(text: str) -> str:
    """Prose of a help text, in which Markdown would see marks, but for `names`."""
    parts = re.split(r"(`[^`]*`)", text.replace("%%", "%"))
    plain = [re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = plain
    return "".join(parts)


def recipe_page() -> str:
    """The fields of a recipe: a table for each dataclass, from `Recipe` downwards."""
    config = importlib.import_module("cfpose_training.config")
    ranges = importlib.import_module("cfpose_training.recipe_checks").RANGES
    seen: dict[str, type] = {}

    def visit(kind: type) -> None:
        if kind.__name__ in seen:
            return
        seen[kind.__name__] = kind
        for hint in typing.get_type_hints(kind).values():
            for part in (hint, *typing.get_args(hint)):
                if inspect.isclass(part) and dataclasses.is_dataclass(part):
                    visit(part)

    visit(config.Recipe)
    intro = (
        "A recipe is a TOML file, a table for each part of a run. It names each field that it "
        "sets; an unknown key, a value of another type or a number out of its range is an error. "
        "The recipes in `training/recipes` are whole examples."
    )
    return f"# Fields of a recipe\n\n{intro}\n\n" + "\n\n".join(
        _table_of(kind, ranges.get(name, {})) for name, kind in seen.items()
    )


def _table_of(kind: type, ranges: dict[str, object]) -> str:
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    rows = ["| field | type | default | range | |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        if field.default_factory is not dataclasses.MISSING:
            default = "its own"
        about, limits = _text(comments.get(field.name, "")), ranges.get(field.name, "")
        rows.append(
            f"| `{field.name}` | {_type(hints[field.name])} | {default} | {limits} | {about} |"
        )
    about = inspect.cleandoc(kind.__doc__ or "")
    return f"## {kind.__name__}\n\n{_text(about)}\n\n" + "\n".join(rows) + "\n"


def _type(hint: object) -> str:
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value!r}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        first = typing.get_args(hint)[0]
        return f"list of {_type(first)}"
    if hint is type(None):
        return "nothing"
    return f"`{getattr(hint, '__name__', hint)}`"


def _comments(kind: type) -> dict[str, str]:
    """The remark behind each field, and the lines of remarks above it."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = []
            at = node.lineno - 2
            while at >= 0 and lines[at].strip().startswith("#"):
                above.insert(0, lines[at].strip().lstrip("# "))
                at -= 1
            last = lines[(node.end_lineno or node.lineno) - 1]
            behind = last[node.end_col_offset or 0 :].partition("#")[2].strip()
            found[node.target.id] = " ".join([*above, behind]).strip()
    return found


_GALLERY = (
    "Ten photos, chosen because they may be shipped and before anything was drawn on them. "
    "`make gallery` draws them with `cfpose predict` as it is: the bundled cfpose-s and finder, "
    "no option set. *Found* is a person whose box, drawn by hand, shares at least half with a box "
    "of the finder (IoU 0.5); *false* are boxes beyond these: things, parts of a person, a person "
    "again; where no joint of one is sure, nothing is drawn. Nothing counts the joints here: look "
    "at them. "
    "How often they are right stands in the [model zoo](zoo.md)."
)


def gallery_page() -> str:
    """The drawn photos of `docs/gallery`, with what the models found and what is really there."""
    folder = ROOT / "docs" / "gallery"
    photos = json.loads((folder / "photos.json").read_text(encoding="utf-8"))
    poses = json.loads((folder / "poses.json").read_text(encoding="utf-8"))
    parts, sums = [f"# Gallery\n\n{_GALLERY}"], [0, 0, 0]
    for name, photo in photos.items():
        boxes = [pose["bbox"] for pose in poses if pose["image_id"] == f"{name}.jpg"]
        found = count_found(photo["people"], [[x, y, x + w, y + h] for x, y, w, h in boxes])
        counts = len(photo["people"]), found, len(boxes) - found
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        parts.append(
            f":::{{figure}} ../gallery/drawn/{name}.jpg\n:alt: {photo['shows']}\n\n"
            f"{photo['shows']}. **People {counts[0]}, found {counts[1]}, false {counts[2]}.** "
            f"Photo: {photo['from']}; {photo['licence']}.\n:::"
        )
    parts.insert(1, "Together: people {}, found {}, false {}.".format(*sums))
    return "\n\n".join(parts) + "\n"


def count_found(people: list[list[float]], boxes: list[list[float]]) -> int:
    """How many people have a box with IoU 0.5 or more; a box counts for one person."""
    if not people or not boxes:
        return 0
    shares = iou_matrix(people, boxes)
    found = 0
    while shares.max() >= 0.5:
        person, box = divmod(int(shares.argmax()), shares.shape[1])
        shares[person], shares[:, box] = 0, 0
        found += 1
    return found


def page_of(file: str, title: str) -> str:
    """A README as a page, with links that hold there."""
    text = (ROOT / file).read_text(encoding="utf-8")
    body = _fence_examples(f"# {title}\n\n{text.partition(chr(10))[2].strip()}\n")
    anchors = set(map(_slug, re.findall(r"^#+ (.*)$", body, re.MULTILINE)))
    return _LINK.sub(lambda match: _relink(match, Path(file).parent, anchors), _images(body, file))


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _fence_examples(text: str) -> str:
    """Blocks without a language are plain text: Sphinx would try Python."""
    lines, inside = text.split("\n"), False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            inside = not inside
            if inside and line == "```":
                lines[number] = "```text"
    return "\n".join(lines)


def _images(text: str, file: str) -> str:
    """Pictures by their place seen from `docs/generated`."""
    home = (ROOT / file).parent

    def moved(match: re.Match[str]) -> str:
        path = (home / match[2]).resolve().relative_to(ROOT)
        return f"![{match[1]}](../../{path.as_posix()})"

    return re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", moved, text)


def _relink(match: re.Match[str], home: Path, anchors: set[str]) -> str:
    text, target = match[1], match[2]
    if re.match(r"[a-z]+:", target):
        return match[0]
    if target.startswith("#"):
        return match[0] if target[1:] in anchors else text
    path, _, anchor = target.partition("#")
    file = (ROOT / home / path).resolve().relative_to(ROOT).as_posix()
    page = _PAGES.get(file)
    if re.fullmatch(r"docs/\w+(-\w+)*\.md", file):
        page = f"../{Path(file).name}" + (f"#{anchor}" if anchor else "")
    return f"[{text}]({page})" if page else _as_name(text, file)


def named_file(match: re.Match[str]) -> str:
    """For a page of `docs`: a link that leaves it becomes text."""
    path = match[2].partition("#")[0].removeprefix("../")
    page = _PAGES.get(path)
    if page and not path.startswith("../"):
        page = page.removeprefix("../") if page.startswith("../") else f"generated/{page}"
        return f"[{match[1]}]({page})"
    return _as_name(match[1], path)


def _as_name(text: str, file: str) -> str:
    name = file.rstrip("/")
    return f"`{name}`" if text.strip("`") in (name, Path(name).name) else f"{text} (`{name}`)"

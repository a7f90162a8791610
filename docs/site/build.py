"""Builds the documentation site: reference pages from the code, pages of other folders, formulas as MathML.

    python docs/site/build.py

Material for MkDocs builds it with the settings of mkdocs.yml. It gets complete Markdown, without hooks, so that its
successor Zensical, which reads the same mkdocs.yml, can take its place.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs.site.reference import command_reference, python_reference, recipe_reference, recipe_schema  # noqa: E402

PAGES = ROOT / "runs/site-pages"
ELSEWHERE = {
    "shards.md": "shards/README.md",
    "deepspeed.md": "ds_configs/README.md",
    "sample.md": "shards/sample/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files of the repository outside of docs/."""
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+(?:\n[^$\n]+)?)\$(?![\w$])")


def main() -> int:
    """Write the Markdown of all pages to runs/site-pages and build runs/site; return the exit status of the builder."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for page, text in pages().items():
        (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / page).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs/assets", PAGES / "assets")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def pages() -> dict[str, str]:
    """Return the Markdown of every page of the site by its path: with links of the site, and formulas as MathML.

    Raises:
        SystemExit: a page links to something that does not exist, or the navigation and the pages differ.
    """
    found = {
        "reference/recipe.md": recipe_reference(),
        "reference/commands.md": command_reference(),
        "reference/python.md": python_reference(),
    }
    own = {file.relative_to(ROOT / "docs").as_posix(): file for file in (ROOT / "docs").rglob("*.md")}
    for page, source in {**own, **{page: ROOT / source for page, source in ELSEWHERE.items()}}.items():
        origin = source.relative_to(ROOT).as_posix()
        found[page] = formulas(_with_links_of_the_site(source.read_text(encoding="utf-8"), origin, page))
    listed = re.findall(r":\s+([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    if different := set(listed) ^ found.keys():
        raise SystemExit(f"mkdocs.yml: the navigation and the pages differ in {', '.join(sorted(different))}")
    found["reference/recipe.schema.json"] = json.dumps(recipe_schema(), indent=2)
    return found


def _with_links_of_the_site(markdown: str, source: str, own: str) -> str:
    """Rewrite relative links: to the page of the target if it has one, otherwise to its path as text."""
    elsewhere = {path: page for page, path in ELSEWHERE.items()}

    def rewrite(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if not (ROOT / target).exists() and not target.startswith("docs/reference/"):
            raise SystemExit(f"{source}: links to {found[2]}, which does not exist")
        page = target.removeprefix("docs/") if target.startswith("docs/") else elsewhere.get(target)
        if page is None:
            text = found[1].strip("`")
            return f"`{target}`" if text == target else f"{found[1]} (`{target}`)"
        return f"[{found[1]}]({posixpath.relpath(page, posixpath.dirname(own) or '.')}{found[3] or ''})"

    return _LINK.sub(rewrite, markdown)


def formulas(markdown: str) -> str:
    """Replace LaTeX between dollar signs, outside of code, by MathML, which browsers render without a network."""
    parts = _CODE.split(markdown)
    for number in range(0, len(parts), 2):
        shown = _DISPLAYED.sub(lambda found: f"\n\n{_mathml(found[1], 'block')}\n\n", parts[number])
        parts[number] = _INLINE.sub(lambda found: _mathml(found[1], "inline"), shown)
    return "".join(parts)


def _mathml(latex: str, display: str) -> str:
    """Return the MathML of a formula on one line, so that Markdown does not touch it.

    Inline it is in a span: a paragraph would end before a line that begins with the element itself.
    """
    formula = convert(" ".join(latex.split()), display=display).replace("\n", " ")
    return formula if display == "block" else f"<span>{formula}</span>"


if __name__ == "__main__":
    sys.exit(main())

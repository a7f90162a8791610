"""The frame of the report: HTML and CSS without anything from the network, for light and dark, desk and phone."""

from html import escape

LINES = (  # of charts, on light ground and on dark: one for every objective and their total
    ("#0f6e84", "#4fb3c9"), ("#c2571a", "#f0955c"), ("#6a51a3", "#a994e0"), ("#4d8b31", "#8cc474"),
    ("#b03a68", "#e886ad"), ("#8a7a1f", "#d4c25f"), ("#2f5fb3", "#86aef0"), ("#7a5a45", "#c4a58f"),
)  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --ground: #fbfaf8; --card: #ffffff; --ink: #1f2328; --quiet: #667080;
  --rule: #e4e2dd; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1c2024; --ink: #e4e6e8; --quiet: #98a2ad;
  --rule: #30363c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header p, .quiet { color: var(--quiet); }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
header p { margin: 4px 0 24px; }
h2 { font-size: 1.05rem; margin: 0 0 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 0 0 24px; }
.cards div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; }
.cards dt { color: var(--quiet); font-size: .82rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.sections { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px; min-width: 0; }
section.full { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick { fill: var(--quiet); font-size: 13px; font-variant-numeric: tabular-nums; }
.name { fill: var(--ink); font-size: 13px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.whisker { stroke-width: 2; }
.line, .whisker { stroke: var(--line); }
.dot { fill: var(--line); }
.legend { margin: 8px 0 0; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .85rem; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--line, currentColor); }
.map { max-height: 460px; }
.map .dot { fill-opacity: .8; }
.wide { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: baseline; }
thead th { color: var(--quiet); font-weight: 500; border-bottom: 1px solid var(--rule); }
.group th { padding-top: 14px; border-bottom: 1px solid var(--rule); }
.group .quiet { font-weight: 400; margin-left: 6px; }
.figure { font-variant-numeric: tabular-nums; white-space: nowrap; }
.interval { color: var(--quiet); font-size: .82rem; margin-left: 4px; }
.difference td { font-style: italic; }
.facts th { font-weight: 500; white-space: nowrap; }
code, pre { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { margin: 0; overflow-x: auto; }
@media (max-width: 720px) {
  main { padding: 20px 12px 40px; }
  .sections { grid-template-columns: minmax(0, 1fr); }
  section { padding: 14px; }
  .cards { grid-template-columns: repeat(2, 1fr); }
  .tick { font-size: 17px; }
  .name { font-size: 18px; }
  .interval { display: block; margin-left: 0; }
  .words table { table-layout: fixed; font-size: .8rem; }
  .words th, .words td { overflow-wrap: anywhere; hyphens: auto; }
  .facts th, .facts td { display: block; padding-right: 0; }
  .facts td { padding-top: 0; }
}
"""
STYLE += "".join(f".c{n} {{ --line: light-dark({light}, {dark}); }}\n" for n, (light, dark) in enumerate(LINES))
FULL_WIDTH = ("Zero-shot linking", "Nearest names", "Written by the decoder", "Data and export", "Recipe")


def page(name: str, summary: list[tuple[str, str]], sections: list[tuple[str, str]]) -> str:
    """Return the document.

    Args:
        name: the run's.
        summary: (what, value), shown large at the top.
        sections: (title, HTML), in order.
    """
    cards = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in summary)
    halves = [title for title, _ in sections if title not in FULL_WIDTH]
    full = [*FULL_WIDTH, *halves[: len(halves) % 2]]
    body = "".join(
        f"<section{' class=full' if title in full else ''}><h2>{escape(title)}</h2>{content}</section>"
        for title, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · bali-ds</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(name)}</h1><p>a run of bali-ds</p></header>"
        + (f'<dl class="cards">{cards}</dl>' if cards else "")
        + f'<div class="sections">{body}</div></main></body></html>\n'
    )

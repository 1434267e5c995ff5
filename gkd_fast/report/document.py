"""The frame of a page: one file that needs no network, light or dark as the reader's system is."""

from __future__ import annotations

from html import escape

_STYLE = """
:root{--ink:#1c2330;--soft:#697386;--line:#e3e7ee;--paper:#f6f7fa;--card:#fff;--accent:#2a6fdb}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#2c3444;--paper:#11151d;--card:#191f2a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1200px;margin:0 auto;padding:32px 24px 80px}
h1{font-size:28px;margin:0 0 4px}h2{font-size:21px;margin:44px 0 12px;border-top:1px solid var(--line);padding-top:28px}
h3{font-size:17px;margin:28px 0 8px}
h4{font-size:15px;margin:0 0 6px}h5{font-size:13px;margin:10px 0 4px;color:var(--soft)}
p,small{color:var(--soft)}small{font-weight:400}nav a{color:var(--accent);margin-right:16px}
.card,.chart,.scores{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0}
table{border-collapse:collapse}.wide{overflow-x:auto}
.scores{padding:0;border-collapse:separate;border-spacing:0}
.scores th,.scores td{padding:7px 16px;border-bottom:1px solid var(--line);text-align:right;
font-variant-numeric:tabular-nums}
.scores tr:last-child>*{border-bottom:0}.scores th:first-child,.scores td:first-child{text-align:left}
.scores th{color:var(--soft);font-weight:600}.best{font-weight:700}
.charts,.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px;margin-top:16px}
.chart figcaption{font-weight:600}.chart svg{width:100%;display:block}.chart text{font-size:11px;fill:var(--soft)}
.chart .grid{stroke:var(--line)}.chart polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:12px;height:3px;margin-right:6px;vertical-align:middle;border-radius:2px}
.gallery th{padding:4px 10px;color:var(--soft);font-size:13px;text-align:left;vertical-align:top}
.gallery td{padding:4px 10px;vertical-align:top}.crops{display:grid;grid-template-columns:repeat(4,44px);gap:3px}
img{border-radius:4px;display:block}.strip{display:flex;flex-wrap:wrap;gap:8px}.strip figure{margin:0}
.strip figcaption{font-size:12px;color:var(--soft);text-align:center;font-variant-numeric:tabular-nums}
.row{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin-bottom:14px}.row figure{margin:0}
.row figcaption{font-size:13px;color:var(--soft);margin-bottom:3px}.boxed{width:100%;display:block;border-radius:6px}
.boxed rect{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}
.boxed text{paint-order:stroke;stroke:#000;font-weight:600}
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """The whole page.

    Args:
        title: of the window.
        body: HTML.
        style: further CSS of this page.
    """
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style><main>{body}</main></html>\n"
    )

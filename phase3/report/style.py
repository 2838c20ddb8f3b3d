"""The style of the HTML page: light and dark, wide and narrow, screen and paper."""

_LIGHT = """
  --page: #f6f6f3; --card: #ffffff; --ink: #16181d; --soft: #565b66; --faint: #7b808b; --rule: #e3e4e0;
  --c1: #2a6fd0; --c2: #12875f; --c3: #b26a00; --c4: #7a3fc4; --c5: #c2386b;
  --good: #0a7d33; --bad: #c02626; --warn: #9a6200; --none: #6a6f7a;
  --good-wash: #e4f4e8; --bad-wash: #fbe9e8; --warn-wash: #fbf1dc; --none-wash: #eeefed;
"""
_DARK = """
  --page: #131417; --card: #1c1e22; --ink: #eff0f2; --soft: #b4b9c2; --faint: #8e949f; --rule: #33363d;
  --c1: #6aa5f5; --c2: #3fc491; --c3: #e0a145; --c4: #b493f0; --c5: #f083a8;
  --good: #5fd184; --bad: #ff8a80; --warn: #edb95a; --none: #a3a8b3;
  --good-wash: #17301f; --bad-wash: #3a1e1d; --warn-wash: #35290f; --none-wash: #292c32;
"""
_COLOURS = "\n".join(
    f".s{n} {{ stroke: var(--c{n}); }} svg .f{n} {{ fill: var(--c{n}); }}\n"
    f"i.c{n}, i.f{n} {{ background: var(--c{n}); }}"
    for n in range(1, 6)
)

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 2px 0 6px; letter-spacing: -.01em;
  overflow-wrap: anywhere; }}
h2 {{ font-size: 19px; margin: 40px 0 12px; }}
h3 {{ font-size: 15px; margin: 0 0 4px; }}
p {{ margin: 0; }}
.over {{ color: var(--faint); font-size: 13px; letter-spacing: .04em; }}
.sub {{ color: var(--soft); overflow-wrap: anywhere; }}
.banner {{ display: flex; gap: 16px; align-items: center; margin: 24px 0 16px; padding: 18px 20px;
  border-radius: 12px; background: var(--wash); border-left: 6px solid var(--tone); }}
.banner strong {{ display: block; font-size: 20px; color: var(--tone); line-height: 1.3; }}
.banner .sign {{ flex: none; width: 40px; height: 40px; border-radius: 50%; background: var(--tone);
  color: var(--card); font-size: 22px; font-weight: 700; display: grid; place-items: center; }}
.pass {{ --tone: var(--good); --wash: var(--good-wash); }}
.fail, .error {{ --tone: var(--bad); --wash: var(--bad-wash); }}
.unfit {{ --tone: var(--warn); --wash: var(--warn-wash); }}
.skip {{ --tone: var(--none); --wash: var(--none-wash); }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }}
.tile, figure, .panel {{ background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }}
.tile {{ padding: 14px 16px; }}
.tile b {{ display: block; font-size: 25px; line-height: 1.25; font-weight: 650; }}
.tile b small {{ font-size: 14px; font-weight: 500; color: var(--soft); }}
.tile span {{ color: var(--soft); font-size: 13px; display: block; }}
.tile em {{ color: var(--faint); font-size: 13px; font-style: normal; }}
.problems {{ margin: 0; padding: 0; list-style: none; display: grid; gap: 10px; }}
.problems li {{ background: var(--card); border: 1px solid var(--rule); border-left: 4px solid var(--tone);
  border-radius: 10px; padding: 12px 16px; overflow-wrap: anywhere; }}
.problems p + p {{ margin-top: 4px; }}
.panel {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; }}
th {{ text-align: left; color: var(--soft); font-weight: 550; font-size: 13px; }}
th, td {{ padding: 9px 14px; border-bottom: 1px solid var(--rule); vertical-align: top; }}
tr:last-child > td {{ border-bottom: 0; }}
.findings td:first-child {{ min-width: 190px; }}
th:not(:first-child), .benchmark th, .benchmark td {{ white-space: nowrap; }}
td.figure, th.figure {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
td small {{ display: block; color: var(--faint); font-size: 12.5px; }}
td.long {{ color: var(--soft); overflow-wrap: anywhere; min-width: 200px; }}
.chip {{ display: inline-block; white-space: nowrap; padding: 1px 9px 1px 7px; border-radius: 99px;
  background: var(--wash); color: var(--tone); font-size: 13px; font-weight: 600; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 16px; }}
figure {{ margin: 0; padding: 16px 18px 14px; min-width: 0; }}
figcaption {{ color: var(--faint); font-size: 13px; margin-top: 4px; overflow-wrap: anywhere; }}
.key {{ display: flex; flex-wrap: wrap; gap: 2px 16px; margin-bottom: 6px; color: var(--soft);
  font-size: 13px; }}
.entry i {{ display: inline-block; margin-right: 6px; vertical-align: middle; }}
i.line {{ width: 18px; height: 3px; border-radius: 2px; }}
i.circle {{ width: 9px; height: 9px; border-radius: 50%; }}
i.bar {{ width: 18px; height: 9px; opacity: .35; }}
i.stroke {{ width: 3px; height: 14px; border-radius: 2px; }}
i.ink {{ background: var(--ink); }}
svg.plot {{ display: block; width: 100%; height: auto; overflow: visible; }}
svg text {{ font-size: 11.5px; fill: var(--soft); }}
svg .name {{ fill: var(--faint); }}
svg .middle {{ text-anchor: middle; }}
svg .end {{ text-anchor: end; }}
.grid {{ stroke: var(--rule); stroke-width: 1; }}
.axis {{ stroke: var(--faint); stroke-width: 1; }}
.line {{ fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }}
.fit, .roof {{ stroke: var(--ink); stroke-width: 1.6; }}
.whisker {{ stroke-width: 1.4; opacity: .6; }}
.dot {{ stroke: var(--card); stroke-width: 1.5; }}
.sample {{ opacity: .6; }}
.band {{ opacity: .3; }}
.range {{ stroke: var(--faint); stroke-width: 1; }}
.median {{ stroke: var(--ink); stroke-width: 2.4; }}
{_COLOURS}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); margin: 0;
  padding: 8px 16px; column-gap: 32px; }}
dl div {{ padding: 7px 0; min-width: 0; }}
dt {{ color: var(--faint); font-size: 13px; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.note {{ color: var(--faint); font-size: 13px; margin-top: 8px; }}
footer {{ margin-top: 40px; color: var(--faint); font-size: 13px; }}
footer p + p {{ margin-top: 6px; }}
@media (max-width: 640px) {{
  main {{ padding: 24px 14px 40px; }}
  h1 {{ font-size: 24px; }}
  svg text {{ font-size: 13.5px; }}
  figure {{ padding: 14px 12px 12px; }}
  .tiles {{ grid-template-columns: 1fr 1fr; }}
  .tile:last-child:nth-child(odd) {{ grid-column: 1 / -1; }}
  .findings thead {{ display: none; }}
  .findings tr {{ display: block; padding: 10px 14px; border-bottom: 1px solid var(--rule); }}
  .findings tr:last-child {{ border-bottom: 0; }}
  .findings td {{ display: block; padding: 1px 0; border: 0; text-align: left; white-space: normal; }}
  .findings td:empty {{ display: none; }}
  .findings td small {{ display: inline; margin-left: 6px; }}
  .findings td:first-child {{ font-weight: 600; }}
  .findings td small {{ font-weight: 400; }}
  .findings td[data-name]::before {{ content: attr(data-name) " "; color: var(--faint); }}
}}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} --page: #ffffff; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  body {{ font-size: 12px; }}
  main {{ max-width: none; padding: 0; }}
  figure, .tile, .problems li, tr, dl div {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }}
  .plots {{ grid-template-columns: 1fr 1fr; }}
}}
"""

"""The report's style sheet and its few lines of script. Calm, readable on a phone, light and dark."""

CSS = """
:root { color-scheme: light dark;
  --paper: #fafaf8; --card: #fff; --ink: #1d2226; --soft: #626b73; --line: #e4e4df;
  --good: #17806d; --good-soft: #17806d2e; --bad: #c2572b; --bad-soft: #c2572b2e; --track: #ecece7;
  --p1: #3d6fb4; --p2: #8a63b8; --p3: #c2873a; --p4: #aab2b8; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --card: #1c2024; --ink: #e6e9eb; --soft: #98a2aa; --line: #2c3237;
  --good: #3fb8a0; --good-soft: #3fb8a038; --bad: #e88a5c; --bad-soft: #e88a5c38; --track: #2a3035;
  --p1: #6f9fe0; --p2: #b08fdc; --p3: #dfab66; --p4: #59636b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 1.05rem; margin: 0 0 14px; }
h3 { font-size: .9rem; margin: 20px 0 10px; color: var(--soft); font-weight: 600; }
h3:first-of-type { margin-top: 0; }
p { margin: 0 0 10px; }
.soft { color: var(--soft); }
.small { font-size: .86rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px; margin-top: 18px; }
.headline { display: flex; flex-wrap: wrap; gap: 8px 36px; align-items: center; }
.number { font-size: clamp(3rem, 12vw, 4.6rem); font-weight: 650; line-height: 1; letter-spacing: -.03em; }
.number span { font-size: .5em; color: var(--soft); margin-left: .08em; }
.headline > div:last-child { flex: 1 1 260px; }
.row { display: grid; grid-template-columns: minmax(0, 15rem) minmax(0, 1fr) 11.5rem; gap: 4px 16px;
  align-items: center; padding: 7px 0; }
.row .name { overflow-wrap: anywhere; line-height: 1.3; }
.row .value { font-variant-numeric: tabular-nums; font-size: .86rem; text-align: right; white-space: nowrap; }
.row .value b { font-size: 1rem; font-weight: 600; }
.row.main .name { font-weight: 600; }
.bar { position: relative; height: 16px; border-radius: 4px; background: var(--track); overflow: hidden; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--good); border-radius: 4px 0 0 4px; }
.row.other .bar i { background: var(--p4); }
.bar u { position: absolute; top: 5px; height: 6px;
  border-left: 2px solid var(--ink); border-right: 2px solid var(--ink);
  background: linear-gradient(var(--ink), var(--ink)) center / 100% 2px no-repeat; min-width: 2px; opacity: .82; }
.dots { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 5px; grid-column: 2 / -1; }
.dots i { width: 9px; height: 9px; border-radius: 2px; background: var(--good); }
.dots i.failure { background: none; box-shadow: inset 0 0 0 2px var(--bad); }
.dots i.error { background: repeating-linear-gradient(45deg, var(--bad) 0 2px, transparent 2px 4px); }
.key { display: inline-flex; gap: 6px; align-items: center; margin-right: 16px; }
.key i { width: 11px; height: 11px; border-radius: 2px; flex: none; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure video { display: block; width: 100%; cursor: pointer; }
figcaption { padding: 8px 11px 10px; font-size: .84rem; line-height: 1.4; overflow-wrap: anywhere; }
.tag { display: inline-block; font-size: .74rem; font-weight: 600; padding: 0 7px;
  border-radius: 99px; margin-right: 4px; }
.tag.success { color: var(--good); background: var(--good-soft); }
.tag.failure { color: var(--bad); background: var(--bad-soft); }
.stack { display: flex; height: 18px; border-radius: 4px; overflow: hidden; margin: 4px 0 12px; gap: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
td { padding: 5px 12px 5px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); width: 13rem; }
tr:first-child td { border-top: 0; }
svg.chart { width: 100%; height: auto; display: block; }
svg.chart text { fill: var(--soft); font-size: 12px; }
svg.chart .grid { stroke: var(--line); }
svg.chart .raw { fill: none; stroke: var(--p1); stroke-width: 1.8; stroke-linejoin: round; }
svg.chart .val { fill: none; stroke: var(--p3); stroke-width: 2; }
svg.chart .dot { fill: var(--p3); }
svg.chart .plain { stroke: var(--p4); stroke-dasharray: 4 3; } svg.chart .whisker { stroke: var(--ink); opacity: .7; }
.small-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 18px; }
.small-charts h3 { margin: 0 0 2px; } .small-charts p { margin: 4px 0 0; }
td.extent { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { margin: 12px 0; }
.pairs { margin-bottom: 12px; }
.pairs th { text-align: right; font-weight: 600; padding: 5px 0 5px 12px; overflow-wrap: break-word; }
.pairs th:first-child { text-align: left; padding-left: 0; }
.pairs td:not(:first-child) { text-align: right; padding-right: 0; font-variant-numeric: tabular-nums; }
.pairs td:first-child { width: 40%; } .pairs tr:last-child td { font-weight: 600; color: var(--ink); }
.strip { margin-top: 14px; content-visibility: auto; contain-intrinsic-size: auto 210px; }
.strip p { margin: 0; padding: 4px 11px 8px; }
.frames { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 2px; }
.frames img { display: block; width: 100%; height: auto; }
.frames i { display: block; font-style: normal; font-size: .74rem; color: var(--soft); padding: 2px 6px 6px; }
.frames .over img { opacity: .35; }
.frames .marked { box-shadow: 0 0 0 2px var(--bad); } .frames .marked i { color: var(--bad); font-weight: 600; }
.errors { border-color: var(--bad); }
@media (max-width: 640px) {
  main { padding: 22px 12px 60px; } section { padding: 17px 15px; }
  .row { grid-template-columns: minmax(0, 1fr) auto; padding: 9px 0; }
  .row .bar, .dots { grid-column: 1 / -1; } .row .value { grid-row: 1; grid-column: 2; }
  .films { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
  .frames { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  svg.chart text { font-size: 25px; } .small-charts svg.chart text { font-size: 12px; }
  .pairs td:first-child { width: 32%; }
  td:first-child { width: 40%; }
}
@media print { section { break-inside: avoid; } }
"""

# Plays only the films in view: dozens of decoders at once would stop a phone. A tap pauses.
SCRIPT = """
const seen = new IntersectionObserver(entries => entries.forEach(e =>
  e.isIntersecting && !e.target.dataset.held ? e.target.play().catch(() => {}) : e.target.pause()));
document.querySelectorAll("video").forEach(v => { seen.observe(v);
  v.onclick = () => { if (v.paused) { delete v.dataset.held; v.play(); } else { v.dataset.held = 1; v.pause(); } }; });
"""

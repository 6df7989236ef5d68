"""The style sheet: light and dark, on a wide screen, a narrow one and paper."""

from benchmarks.report.looks import colour_classes, colours

_LIGHT = """
--page:#fbfbfa;--card:#ffffff;--ink:#16191d;--muted:#5d656f;--rule:#dfe2e6;--grid:#e7e9ec;
--faster:#00587f;--faster-back:#dcf0fa;--slower:#a3122f;--slower-back:#fde3e5;--even-back:#eff0f2;
--alert:#fff1d6;--alert-rule:#e69f00;--share:#7fb3cc;--wait:#f2a900;
--span-0:#3c6fb0;--span-1:#7b5fb5;--span-2:#2b9a80;--span-3:#a9667f;--span-4:#8b9199;
"""
_DARK = """
--page:#121519;--card:#1a1e24;--ink:#e8eaed;--muted:#a2aab4;--rule:#343b44;--grid:#2c323a;
--faster:#8fd3f5;--faster-back:#12384b;--slower:#ff9dab;--slower-back:#4d1a24;--even-back:#282d34;
--alert:#3d2f10;--alert-rule:#e69f00;--share:#3f7f9e;--wait:#ffc233;
--span-0:#6c9fe0;--span-1:#a78be0;--span-2:#4cc2a5;--span-3:#d293ab;--span-4:#8f969f;
"""
SPAN_COLOURS = 5  # of a timeline, beside that of waiting
_SPANS = "".join(f".{name}{{color:var(--{name})}}" for name in ("wait", *(f"span-{i}" for i in range(SPAN_COLOURS))))

STYLE = (
    f"""
:root{{color-scheme:light dark;{_LIGHT}{colours(dark=False)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}{colours(dark=True)}}}}}
{colour_classes()}
{_SPANS}
"""
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
section{margin:2.75rem 0}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.3;margin:0 0 .5rem}
h3{font-size:1rem;margin:1.5rem 0 .25rem}
h2 small,h3 small{font-weight:400;color:var(--muted);font-size:.95rem}
p{margin:.4rem 0;max-width:60rem}
ul{margin:.4rem 0;padding-left:1.2rem}
a{color:var(--faster)}
small,.note{color:var(--muted);font-size:.86rem}
code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.lead{color:var(--muted);margin:0}
.badge{display:inline-block;border:1px solid var(--alert-rule);background:var(--alert);border-radius:4px;
  padding:0 .45rem;font-size:.86rem;color:var(--ink)}
.alert{background:var(--alert);border-left:5px solid var(--alert-rule);border-radius:4px;padding:.8rem 1.1rem;
  margin:1.25rem 0}
.alert h2{font-size:1.1rem}
.reason{overflow-wrap:anywhere;white-space:pre-wrap}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.6rem 1.75rem;margin:1.25rem 0}
dl div{border-top:1px solid var(--rule);padding-top:.35rem}
dl .wide:has(details){grid-column:1/-1}
dl summary,.reason summary{font-weight:400}
dl details{margin:0}
dt{color:var(--muted);font-size:.8rem}
dd{margin:0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:1rem;margin:1.5rem 0}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.9rem 1.1rem}
.tile h3{margin:0;font-size:.9rem;font-weight:600;color:var(--muted)}
.tile strong{display:block;font-size:1.9rem;line-height:1.3;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile p{margin:.1rem 0;font-size:.86rem;color:var(--muted)}
.tag{white-space:nowrap;border-radius:4px;padding:0 .35rem;margin-right:.2rem}
.faster{color:var(--faster);background:var(--faster-back)}
.slower{color:var(--slower);background:var(--slower-back)}
.even{background:var(--even-back)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.5rem 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:1rem 1.1rem;margin:1rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,31rem),1fr));gap:1rem;align-items:start}
.charts>*{min-width:0}
.charts .card{margin:0 0 1rem}
figure{margin:0}
figcaption{color:var(--muted);font-size:.86rem;margin-top:.4rem}
figure h3{margin:0 0 .4rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.86rem;margin:.2rem 0 .5rem}
.key{white-space:nowrap}
.key svg{vertical-align:-2px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;white-space:nowrap}
th{font-weight:600;font-size:.82rem;color:var(--muted);vertical-align:bottom}
th.name,td.name{text-align:left}
.standings th{white-space:normal}
td.words{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:14rem}
td small{display:block;line-height:1.25;white-space:nowrap}
td.own,tr.own td{font-weight:600}
td small{font-weight:400}
.measured td small{display:inline;margin-left:.4rem}
.measured td:first-child{position:sticky;left:0;background:var(--page)}
td.wrong,td.failed{background:var(--alert);font-weight:600}
td.absent{color:var(--muted)}
td.share{background:linear-gradient(var(--share),var(--share)) left bottom/var(--part) 5px no-repeat}
tr.inputs th{text-align:left;color:var(--ink);background:var(--even-back);padding-top:.5rem;white-space:normal}
tr.inputs code{font-weight:400}
details{margin:.75rem 0}
summary{cursor:pointer;font-weight:600}
svg{overflow:visible}
.plot{display:block;width:calc(100% - var(--left) - var(--right));min-width:8.5rem;
  margin:var(--top) var(--right) var(--bottom) var(--left);font-size:12px;font-variant-numeric:tabular-nums}
.plot text{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.plot .tick,.plot .missing{fill:var(--muted);font-size:11px}
.plot .label{stroke-width:7px}
.plot .heading{font-weight:600}
.plot .ceiling{font-size:11px}
.grid{stroke:var(--grid)}
.one{stroke:var(--ink);stroke-width:1.5}
.bar,.span{fill:currentColor}
.bar:not(.ours){opacity:.75}
.bar.hollow{fill-opacity:.15;stroke:currentColor;stroke-width:1.2}
.whisker{stroke:var(--ink);stroke-width:1.2}
.mark{fill:currentColor;stroke:var(--card);stroke-width:1.2}
.line{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.line.ours{stroke-width:3}
.band{fill:currentColor;opacity:.18}
.copy{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:7 4}
.peak{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:2 3}
.roof{fill:none;stroke:var(--ink);stroke-width:1.5;stroke-dasharray:1 3;vector-effect:non-scaling-stroke}
.span{stroke:var(--card);stroke-width:1}
.span.wait{stroke:var(--ink);stroke-width:1.5}
@media (max-width:40rem){
  body{font-size:14px}
  main,header,footer{padding:0 .8rem}
  header{padding-top:1.2rem}
  .card{padding:.8rem}
  h1{font-size:1.5rem}
  th,td{padding:.3rem .4rem}
}
@media print{
  body{font-size:9.5pt;background:#fff}
  main,header,footer{max-width:none;padding:0}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
  figure,.tile,tr,.alert{break-inside:avoid}
  h2,h3{break-after:avoid}
  nav,.details{display:none}
  table{font-size:8pt}
  th,td{padding:.2rem .3rem}
  .scroll{overflow:visible}
}
"""
)

// The overview's charts: the figures of the last quarter of an hour, asked for anew every few seconds.
"use strict";
(() => {
  const EVERY_MS = 3000;
  const SHOWN_S = 900;
  const box = document.getElementById("charts");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clock = (at, toTheSecond) => new Date(at * 1000).toISOString().slice(11, toTheSecond ? 19 : 16);
  const LINES = {
    requests: (seen) => [["requests", seen.requests_s], ["errors", seen.errors_s]],
    deliveries: (seen) => [["a second", seen.deliveries_s], ["being delivered again", seen.redelivered]],
    waiting: (seen) => Object.entries(seen.waiting),
  };
  const drawn = new Map();
  let last = null;

  function options(host, lines) {
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, gap: 6, font: "12px system-ui" };
    return {
      width: host.clientWidth,
      height: 165,
      scales: { x: { time: true, range: (_, first, now) => [Math.max(now - SHOWN_S, Math.min(first, now - 60)), now] }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [
        { ...axis, size: 28, space: 70, values: (_, ticks) => ticks.map((at) => clock(at, ticks[1] - ticks[0] < 60)) },
        { ...axis, size: 46 },
      ],
      legend: { live: true },
      cursor: { points: { size: 6 } },
      series: [
        { label: "UTC", value: (chart, at) => clock(at ?? chart.data[0].at(-1), true) },
        ...lines.map(([label], place) => ({
          label, stroke: color(`--chart-${place + 1}`), width: 1.5, spanGaps: false, points: { show: false },
          value: (chart, figure, line, at) => String((at == null ? chart.data[line].at(-1) : figure) ?? "–"),
        })),
      ],
    };
  }

  function draw(seen) {
    if (seen.at.length < 2) return;
    for (const host of box.querySelectorAll("[data-chart]")) {
      const lines = LINES[host.dataset.chart](seen);
      const data = [seen.at, ...lines.map(([, figures]) => figures)];
      const before = drawn.get(host);
      if (before) before.setData(data);
      else drawn.set(host, new uPlot(options(host, lines), data, host));
    }
  }

  function drawAnew() {
    for (const chart of drawn.values()) chart.destroy();
    drawn.clear();
    if (last) draw(last);
  }

  async function ask() {
    if (!document.hidden) {
      try {
        const reply = await fetch(box.dataset.from, { headers: { "HX-Request": "true" }, redirect: "manual" });
        const elsewhere = reply.headers.get("HX-Redirect");
        if (elsewhere) return location.assign(elsewhere);
        if (reply.ok) draw((last = await reply.json()));
      } catch { /* the console is away: the page shows what it had, and asks again */ }
    }
    setTimeout(ask, EVERY_MS);
  }

  dark.addEventListener("change", drawAnew);
  let width = box.clientWidth;
  new ResizeObserver(() => {
    if (box.clientWidth !== width) {
      width = box.clientWidth;
      drawAnew();
    }
  }).observe(box);
  ask();
})();

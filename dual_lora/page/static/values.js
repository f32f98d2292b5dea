// What the page shows. Its runs are packed, a sweep a text: zlib's deflate in base64.
if (!window.DecompressionStream) {
  document
    .getElementById("main")
    .append("This page needs a browser of 2023 or later. The same numbers are in results/tables/*.md.");
  throw new Error("no DecompressionStream");
}
const data = JSON.parse(document.getElementById("values").textContent);
const unpacking = Promise.all(Object.values(data.sweeps).map(unpacked)).then((sweeps) => {
  data.runs = Object.fromEntries(sweeps.flat().sort(([one], [other]) => (one < other ? -1 : 1)));
});

async function unpacked(base64) {
  const text = atob(base64),
    bytes = new Uint8Array(text.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k); // Uint8Array.from takes ten times as long
  const stream = new Response(bytes).body.pipeThrough(new DecompressionStream("deflate"));
  const { runs, pool } = await new Response(stream).json();
  return Object.entries(runs).map(([id, run]) => [id, whole(run, (place) => pool[place])]);
}

// A run with what it shares with others of its sweep in place of where that is in their pool.
function whole(run, held) {
  return {
    ...run,
    settings: run.settings.map(held),
    sources: held(run.sources),
    scores: run.scores?.map(([where, ...rest]) => [held(where), ...rest]),
    notes: run.notes?.map(held),
    samples: run.samples?.map(([text, reply]) => [held(text), reply]),
    curves:
      run.curves && Object.fromEntries(Object.entries(run.curves).map(([name, [at, of]]) => [name, [held(at), of]])),
    cost: Object.fromEntries(
      data.costs.map((name, place) => [name, run.cost[place]]).filter(([, value]) => value !== null),
    ),
    execution: held(run.execution),
    origin: held(run.origin),
  };
}

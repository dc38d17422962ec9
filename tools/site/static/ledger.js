// The ledger's filter: sentences by words and kind, at most 200 at a time.
const words = document.getElementById("claim-words");
const kind = document.getElementById("claim-kind");
const count = document.getElementById("claim-count");
const body = document.querySelector("#claims tbody");

function cell(row, text, address) {
  const here = row.insertCell();
  if (!address) { here.textContent = text; return; }
  const link = document.createElement("a");
  link.href = address;
  link.textContent = text;
  here.append(link);
}

function show(claims) {
  const asked = words.value.toLowerCase().split(/\s+/);
  const found = claims.filter((claim) => (!kind.value || claim.kind === kind.value)
    && asked.every((word) => (claim.sentence + claim.notebook).toLowerCase().includes(word)));
  count.textContent = `${found.length} of ${claims.length}` + (found.length > 200 ? ", the first 200 shown" : "");
  body.replaceChildren();
  for (const claim of found.slice(0, 200)) {
    const row = body.insertRow();
    const verdict = claim.verdict ? ` True is: ${claim.verdict}.` : "";
    cell(row, (claim.sentence + verdict).replaceAll("`", "").replaceAll("**", ""));
    cell(row, claim.kind);
    cell(row, claim.notebook.replace("nbs/", "").replace(".ipynb", ""), claim.address);
    cell(row, claim.proved || (claim.kind === "not run yet" ? claim.kind : "none on record"));
  }
}

const claims = JSON.parse(document.getElementById("claims-data").textContent);
for (const control of [words, kind]) control.addEventListener("input", () => show(claims));
show(claims);

// The search for a pasted error message: first the heading of the questions page that shares most of its words. Numbers
// and names in a message differ from run to run, and Sphinx wants every word on the page.
const parts = (text) => new Set(text.toLowerCase().match(/[a-z]{3,}/g));

function likeness(asked, title) {
  const known = parts(title);
  const shared = [...asked].filter((word) => known.has(word)).length;
  const share = shared / Math.min(asked.size, known.size);
  return shared >= 3 && share >= 0.7 ? (2 * shared) / (asked.size + known.size) : 0;
}

function heading(query) {
  const { alltitles, docnames, filenames, titles } = Search._index;
  const page = docnames.indexOf("nbs/questions");
  let best = [0];
  for (const [title, places] of Object.entries(alltitles)) {
    const place = places.find(([file, anchor]) => file === page && anchor);
    const score = place ? likeness(parts(query), title) : 0;
    if (score > best[0]) best = [score, title, place[1]];
  }
  const [score, title, anchor] = best;
  const shown = `${titles[page]} > ${title}`;
  return score ? [[docnames[page], shown, `#${anchor}`, null, score, filenames[page], "title"]] : [];
}

if (typeof Search !== "undefined") {
  const perform = Search._performSearch;
  Search._performSearch = (query, ...terms) => {
    const first = heading(query);
    const others = perform(query, ...terms).filter((one) => !first.length || one[2] !== first[0][2]);
    return [...others, ...first]; // the last is shown first
  };
}

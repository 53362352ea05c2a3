// Differences of two texts, by words; by lines if their words differ in too many places.
const MOST_EDITS = 2500;

const wordsOf = (text) => text.match(/\s+|\p{Script=Han}|[\p{L}\p{N}_]+|./gsu) ?? [];
const linesOf = (text) => text.match(/[^\n]*\n|[^\n]+$/g) ?? [];

/** The shortest edits from list a to list b, as [kind, item]: same, del (only in a), ins (only in b).
    Null if there are more than MOST_EDITS. Myers (1986), "An O(ND) difference algorithm". */
const edits = (a, b) => {
  const most = Math.min(a.length + b.length, MOST_EDITS), middle = most + 1;
  const reach = new Int32Array(2 * most + 3);  // the furthest x on each diagonal k = x - y
  const trail = [];
  for (let d = 0; d <= most; d++) {
    trail.push(reach.slice(middle - d - 1, middle + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reach[middle + k - 1] < reach[middle + k + 1]);
      let x = down ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach[middle + k] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, trail);
    }
  }
  return null;
};

const walkBack = (a, b, trail) => {
  const steps = [];
  let x = a.length, y = b.length;
  for (let d = trail.length - 1; d > 0; d--) {
    const before = trail[d], middle = d + 1, k = x - y;
    const down = k === -d || (k !== d && before[middle + k - 1] < before[middle + k + 1]);
    const fromX = before[middle + (down ? k + 1 : k - 1)], fromY = fromX - (down ? k + 1 : k - 1);
    while (x > (down ? fromX : fromX + 1)) steps.push(["same", a[--x]]);
    steps.push(down ? ["ins", b[fromY]] : ["del", a[fromX]]);
    [x, y] = [fromX, fromY];
  }
  while (x > 0) steps.push(["same", a[--x]]);
  return steps.reverse();
};

/** Edits as runs of [same, del, ins]: a lone word between two edits is not worth a break. */
const runsOf = (steps) => {
  const runs = [["", "", ""]];
  for (let i = 0; i < steps.length;) {
    let next = i;
    while (next < steps.length && steps[next][0] === "same") next++;
    const same = steps.slice(i, next).map(([, text]) => text).join(""), run = runs.at(-1);
    const short = (same.match(/[\p{L}\p{N}_]+/gu) ?? []).length < 2 && !same.includes("\n");
    if (short && next < steps.length && (run[1] || run[2])) { run[1] += same; run[2] += same; }
    else if (same) runs.push([same, "", ""]);
    for (i = next; i < steps.length && steps[i][0] !== "same"; i++) {
      runs.at(-1)[steps[i][0] === "del" ? 1 : 2] += steps[i][1];
    }
  }
  return runs;
};

/** An element that shows both texts, with what only one of them holds marked, and a note. */
const diffOf = (a, b) => {
  let steps = edits(wordsOf(a), wordsOf(b)), note = "by words";
  if (!steps) { steps = edits(linesOf(a), linesOf(b)); note = "by lines: the words differ in too many places"; }
  if (!steps) { steps = [["del", a], ["ins", b]]; note = "the texts have too little in common to be compared"; }
  const shown = make("div", { className: "text diff" });
  for (const [same, left, right] of runsOf(steps)) {
    shown.append(same);
    if (left) shown.append(make("del", {}, left));
    if (right) shown.append(make("ins", {}, right));
  }
  return [shown, note];
};

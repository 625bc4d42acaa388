const LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";  // probabilities from 0 to 1
const GIVEN = "-";
const PLAY_SECONDS = 5;  // from the first step to the last, where steps are neither few nor many
const CURVES = [
  {name: "entropy", digits: 2, fromZero: true, what: "mean entropy of the tokens in nats"},
  {name: "switches", digits: 0, fromZero: true, what: "tokens that switched since the step before"},
  {name: "norm", digits: 2, fromZero: false, what: "mean norm of the estimate of x0"},
];
// What is drawn: the step that is shown, how many there are yet, the times of all, the strings of tokens.
const view = {step: 0, reached: 0, times: [], strings: [], cards: [], timer: null};
const lastStep = () => view.times.length - 1;
const byId = (id) => document.getElementById(id);
const signed = (number, digits) => number.toFixed(digits).replace("-", "\u2212");

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function makeShape(tag, attributes) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  return shape;
}

/* Candidates */

const spelled = (tokens) => tokens.map((token) => view.strings[token]).join("").replace(/\s+/g, " ").trim();

// Puts what a step changed, positions each followed by the number of a string, among the tokens.
function put(tokens, changes) {
  for (let i = 0; i < changes.length; i += 2) tokens[changes[i]] = changes[i + 1];
}

// A candidate before its first step.
const begun = (known) => ({...known, tokens: [], starts: [], frames: [], confidence: [], switched: [], since: [],
                           switches: [], entropy: [], norm: []});

// Adds a step: the words after it, which of them switched, since when each is there, and the curves.
function advance(candidate, changes, confidence, entropy, norm) {
  const step = candidate.frames.length, places = changes.filter((_, i) => i % 2 === 0);
  put(candidate.tokens, changes);
  for (const place of places) candidate.starts[place] = step;
  candidate.switched.push(new Set(step ? places : []));
  candidate.switches.push(step ? places.length : 0);
  candidate.frames.push(candidate.tokens.slice(0, confidence.length));
  candidate.since.push(candidate.starts.slice());
  candidate.confidence.push(confidence);
  candidate.entropy.push(entropy);
  candidate.norm.push(norm);
}

function layOut(candidates) {
  view.cards = candidates.map((candidate, place) => card(candidate, place + 1));
  byId("candidates").replaceChildren(...view.cards.map((one) => one.element));
  drawCurves();
}

// All candidates' curves, on the same axes.
function drawCurves() {
  const ranges = CURVES.map(({name, fromZero}) => {
    const values = view.cards.flatMap((one) => one.candidate[name]);
    return [fromZero ? 0 : Math.min(...values), Math.max(...values)];
  });
  for (const one of view.cards) one.draw(ranges);
}

function card(candidate, number) {
  const element = make("article", "candidate"), head = make("header"), body = make("div", "body");
  const heading = make("h3", "", `Candidate ${number}`), words = make("p", "words"), exit = make("p", "muted exit");
  heading.id = `candidate-${number}`;
  element.setAttribute("aria-labelledby", heading.id);
  head.append(heading);
  if (candidate.score !== undefined) head.append(make("span", "muted", `score ${signed(candidate.score, 2)}`));
  if (candidate.rouge) head.append(make("span", "muted", `ROUGE-L ${candidate.rouge[2].toFixed(1)}`));
  const left = make("div"), curves = make("div", "curves");
  left.append(words, exit);
  const charts = CURVES.map((curve) => chart(curve, candidate));
  curves.append(...charts.map((one) => one.element));
  body.append(left, curves);
  element.append(head, body);
  return {element, candidate, draw(ranges) {
    charts.forEach((one, place) => one.draw(ranges[place]));
  }, seek(step) {
    write(words, candidate, step);
    if (candidate.exit !== undefined) tellExit(exit, candidate, step);
    for (const one of charts) one.seek(step);
  }};
}

// The words after a step, each in an element that stays in its place from step to step.
function write(words, candidate, step) {
  const tokens = candidate.frames[step];
  while (words.children.length > tokens.length) words.lastChild.remove(), words.lastChild.remove();
  while (words.children.length < tokens.length) words.append(document.createTextNode(""), make("span", "token"));
  let trailing = "";
  tokens.forEach((token, place) => {
    const [, before, core, after] = /^(\s*)(.*?)(\s*)$/s.exec(view.strings[token]);
    const span = words.children[place], letter = candidate.confidence[step][place];
    span.previousSibling.data = place ? trailing + before : "";
    trailing = after;
    span.textContent = core;
    span.classList.toggle("given", letter === GIVEN);
    span.classList.toggle("switched", candidate.switched[step].has(place));
    const sure = letter === GIVEN ? 1 : LETTERS.indexOf(letter) / (LETTERS.length - 1);
    span.style.setProperty("--doubt", `${Math.round(100 * (1 - sure))}%`);
    const when = `since step ${candidate.since[step][place] + 1}`;
    span.title = letter === GIVEN ? "given" : `probability ${sure.toFixed(2)}, ${when}`;
  });
}

function tellExit(exit, candidate, step) {
  const gone = candidate.exit !== null && step >= candidate.exit - 1;
  exit.classList.toggle("left", gone);
  exit.textContent = candidate.exit === null ? "no early exit" : `early exit at step ${candidate.exit}`;
  if (candidate.exit === null) return;
  const later = candidate.switches.slice(candidate.exit).reduce((a, b) => a + b, 0);
  if (later) exit.textContent += `, then ${later} ${later === 1 ? "switch" : "switches"}`;
}

function chart({name, digits, what}, candidate) {
  const values = candidate[name], last = lastStep();
  const figure = make("figure"), caption = make("figcaption"), value = make("output");
  const x = (step) => last ? 100 * step / last : 50;
  const told = (number) => signed(number, digits);
  const svg = makeShape("svg", {viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img"});
  const upright = (kind) => makeShape("line", {class: kind, y1: 0, y2: 40});
  const now = upright("now"), exit = upright("exit"), curve = makeShape("path", {class: "curve"});
  const at = (shape, step) => ["x1", "x2"].forEach((end) => shape.setAttribute(end, x(step)));
  svg.append(makeShape("line", {class: "base", x1: 0, x2: 100, y1: 39.5, y2: 39.5}));
  if (candidate.exit) svg.append(exit), at(exit, candidate.exit - 1);
  svg.append(curve, now);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    go(Math.round(last * (event.clientX - box.left) / box.width));
  });
  caption.append(make("span", "", name), value);
  figure.title = `${what} over the steps`;
  figure.append(caption, svg);
  return {element: figure, draw([low, high]) {
    const y = (number) => high > low ? 38 - 36 * (number - low) / (high - low) : 38;
    const line = values.map((number, step) => `${step ? "L" : "M"}${x(step).toFixed(2)} ${y(number).toFixed(2)}`);
    curve.setAttribute("d", line.join(""));
    svg.setAttribute("aria-label",
                     `${what} over the steps, from ${told(values[0])} to ${told(values[values.length - 1])}`);
  }, seek(step) {
    value.textContent = told(values[step]);
    at(now, step);
  }};
}

/* Steps */

function seek(step) {
  view.step = Math.min(Math.max(step, 0), view.reached);
  const said = `step ${view.step + 1} of ${view.times.length}`;
  byId("step").value = view.step + 1;
  byId("step").setAttribute("aria-valuetext", said);
  byId("where").textContent = `${said}, t = ${view.times[view.step]}`;
  for (const one of view.cards) one.seek(view.step);
}

function pause() {
  clearInterval(view.timer);
  view.timer = null;
  byId("play").textContent = "Play";
}

function play() {
  if (view.timer !== null) return pause();
  if (view.step === view.reached) seek(0);
  byId("play").textContent = "Pause";
  const wait = Math.min(Math.max(1000 * PLAY_SECONDS / view.times.length, 40), 400);
  view.timer = setInterval(() => {
    seek(view.step + 1);
    if (view.step === view.reached) pause();
  }, wait);
}

function go(step) {
  pause();
  seek(step);
}

const STEP_KEYS = {
  ArrowLeft: () => go(view.step - 1), ArrowRight: () => go(view.step + 1), Home: () => go(0),
  End: () => go(view.reached), " ": play,
};

// A key that was pressed where nothing is typed.
function pressed(event, keys) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("textarea, select, input:not([type=range])")) return;
  if (!keys[event.key] || (event.key === " " && event.target.matches("button"))) return;
  event.preventDefault();
  keys[event.key]();
}

function listenToSteps(keys) {
  byId("step").addEventListener("input", (event) => go(Number(event.target.value) - 1));
  byId("play").addEventListener("click", play);
  document.addEventListener("keydown", (event) => pressed(event, keys));
}

const form = document.getElementById("choice"), result = document.getElementById("result");
const problem = document.getElementById("problem"), said = document.getElementById("status");
const controls = form.elements, contrastive = {{ contrastive | tojson }};
let running = null;

function fail(text) {
  result.replaceChildren();
  said.textContent = "";
  problem.textContent = text;
  problem.hidden = false;
}

function done(fragment) {
  const focused = document.activeElement.id;
  result.innerHTML = fragment;  // of this server, which escapes whatever it shows
  said.textContent = result.querySelector("[data-said]").dataset.said;
  if (focused) document.getElementById(focused)?.focus();
}

async function look() {
  running?.abort();
  const mine = running = new AbortController();
  controls.baseline.disabled = !contrastive.includes(controls.method.value);
  const chosen = new URLSearchParams(new FormData(form));
  history.replaceState(null, "", "?" + chosen);
  result.setAttribute("aria-busy", "true");
  said.textContent = "Explaining\u2026";
  problem.hidden = true;
  try {
    const response = await fetch("look?" + chosen, { signal: mine.signal });
    const text = await response.text();
    if (mine === running) (response.ok ? done : fail)(text);
  } catch (error) {
    if (mine === running) fail("No answer. Is diffgradcam view still running?");
  }
  if (mine === running) result.setAttribute("aria-busy", "false");
}

// Below the thumbnails and the lists, the buttons of the table choose a class, too; pressed again, no other class.
result.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  controls[button.name].value = button.name === "other" && button.ariaPressed === "true" ? "" : button.value;
  if (controls.class.value === controls.other.value) controls.other.value = "";
  look();
});
form.addEventListener("change", event => { if (event.target.name) look(); });
form.addEventListener("submit", event => event.preventDefault());

// A file that cannot be read has no thumbnail; the reason is shown when it is chosen.
for (const picture of form.querySelectorAll("img")) {
  const missing = () => picture.replaceWith(Object.assign(document.createElement("span"), { className: "missing" }));
  if (picture.complete && !picture.naturalWidth) missing();
  else picture.addEventListener("error", missing);
}

// The address says what was chosen, so that a page that is loaded again shows it again.
for (const [name, value] of new URLSearchParams(location.search)) if (controls[name]) controls[name].value = value;
look();

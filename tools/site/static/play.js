// Moves the slider of the first page, a step in 1.5 seconds; pressed again, it stops.
const button = document.querySelector(".play");
const slider = () => document.querySelector(".ft-drawing input");
let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  button.textContent = "Play";
}

function go(to) {
  slider().value = to;
  slider().dispatchEvent(new Event("input"));
}

function step() {
  go(+slider().value + 1);
  if (slider().value === slider().max) stop();
}

button.addEventListener("click", () => {
  if (timer) return stop();
  if (slider().value === slider().max) go(0);
  timer = setInterval(step, 1500);
  button.textContent = "Stop";
});

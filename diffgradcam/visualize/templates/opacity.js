const opacity = document.getElementById("opacity"), share = document.getElementById("share");
function fade() {
  document.documentElement.style.setProperty("--opacity", opacity.value / 100);
  share.value = opacity.value + "%";
}
opacity.addEventListener("input", fade);
fade();

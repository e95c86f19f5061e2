// Audio, cursor and pictures of an utterance on one clock.
for (const box of document.querySelectorAll(".item")) {
  const audio = box.querySelector("audio"), time = box.querySelector(".time"), cursor = box.querySelector(".cursor");
  const seconds = Number(box.dataset.seconds);
  const show = () => { cursor.style.left = (100 * audio.currentTime / seconds) + "%"; };
  const follow = () => { show(); if (!audio.paused) requestAnimationFrame(follow); };
  audio.addEventListener("play", follow);
  audio.addEventListener("timeupdate", show);
  time.addEventListener("click", (event) => {
    const place = time.getBoundingClientRect();
    audio.currentTime = seconds * (event.clientX - place.left) / place.width;
    audio.play().catch(() => {});
  });
}
document.body.dataset.items = document.querySelectorAll(".item").length;

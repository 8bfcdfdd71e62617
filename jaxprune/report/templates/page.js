"use strict";
// A token, or a cell of the map, says what it holds when it is pointed at or
// tapped; the chooser puts another prompt first. Without this script the same
// words stand in titles, and every prompt on the page.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  let held = null;

  const show = (token) => {
    if (token.title) {
      token.dataset.says = token.title;
      token.removeAttribute("title");
    }
    tip.textContent = token.dataset.says;
    tip.hidden = false;
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth
      - tip.offsetWidth - 8);
    const below = box.bottom + 6;
    const above = box.top - tip.offsetHeight - 6;
    const top = below + tip.offsetHeight > window.innerHeight && above > 0
      ? above : below;
    tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  };
  const hold = (token) => {
    if (held) held.classList.remove("held");
    held = token;
    if (token) {
      token.classList.add("held");
      show(token);
    } else {
      tip.hidden = true;
    }
  };
  const tokenOf = (event) =>
    event.target instanceof Element ? event.target.closest(".t") : null;

  document.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token) show(token);
    else if (held) show(held);
    else tip.hidden = true;
  });
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element
      ? event.target.closest("a[href^='#t']") : null;
    if (link) {
      // A step of the map leads to that token of the prompt that stands first.
      const step = link.getAttribute("href").split("-").pop();
      const first = document.querySelector(".text");
      const tokens = first ? first.querySelectorAll(".dense .t") : [];
      const token = tokens[Math.min(step, tokens.length - 1)];
      if (!token) return;
      event.preventDefault();
      token.scrollIntoView({ block: "center" });
      hold(token);
      return;
    }
    const token = tokenOf(event);
    hold(token === held ? null : token);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hold(null);
  });

  const chooser = document.querySelector(".chooser");
  if (!chooser) return;
  chooser.hidden = false;
  chooser.querySelector("select").addEventListener("change", (event) => {
    hold(null);
    const chosen = document.getElementById(event.target.value);
    const first = document.querySelector(".text");
    if (chosen && first && chosen !== first) {
      const beside = document.createComment("");
      chosen.replaceWith(beside);
      first.replaceWith(chosen);
      beside.replaceWith(first);
    }
  });
})();

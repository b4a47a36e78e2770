// Esc stops a reply; the box has a name for those who do not see it, and keeps the focus.
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  const stop = document.querySelector("#message button.stop-button");
  if (stop) { event.preventDefault(); stop.click(); document.querySelector("#message textarea")?.focus(); }
});
new MutationObserver(() => {
  document.querySelector("#message textarea:not([aria-label])")?.setAttribute("aria-label", "Message");
  document.querySelector("#message .submit-button:not([aria-label])")?.setAttribute("aria-label", "Send");
  document.querySelector("#message .stop-button:not([aria-label])")?.setAttribute("aria-label", "Stop");
  // The whole title of a thought opens it; the arrow in it is for the eye.
  for (const title of document.querySelectorAll("#chat .thought-group .title")) {
    const open = String(title.classList.contains("expanded"));
    if (title.getAttribute("aria-expanded") !== open) title.setAttribute("aria-expanded", open);
    title.querySelector("button:not([tabindex])")?.setAttribute("tabindex", "-1");
  }
  const status = document.querySelector("#status:not([role])");
  if (status) { status.setAttribute("role", "status"); }
}).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });

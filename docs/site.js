// What the theme leaves out for those who use a keyboard or a screen reader.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const region of document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap, .md-typeset p")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
  }
});

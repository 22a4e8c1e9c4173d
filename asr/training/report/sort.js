// Sorts tables by the column that is clicked; cells that start with a number by the number.
for (const table of document.querySelectorAll("table.sortable")) table.querySelectorAll("th").forEach((head, column) => {
  const button = document.createElement("button"); button.append(...head.childNodes); head.append(button);
  button.onclick = () => {
    const down = head.ariaSort !== "descending", body = table.tBodies[0], value = row => row.cells[column].textContent;
    const order = (a, b) => parseFloat(value(a)) - parseFloat(value(b)) || value(a).localeCompare(value(b));
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  };
});

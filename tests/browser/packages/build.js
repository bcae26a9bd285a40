/** Builds the pages with Vite, each into a folder of its own below `built`. */

import { writeFileSync } from "node:fs";
import { build } from "vite";

const REACT_18 = [
  { find: /^react-dom(?=\/|$)/, replacement: "react-dom18" },
  { find: /^react(?=\/|$)/, replacement: "react18" },
];
const pages = { react18: ["page.jsx", REACT_18], react19: ["page.jsx", []], vue: ["page.js", []] };

for (const [name, [source, alias]] of Object.entries(pages)) {
  const html = '<!doctype html><link rel="icon" href="data:,"><div id="root"></div>';
  writeFileSync("index.html", `${html}<script type="module" src="./${source}"></script>`);
  await build({
    base: `/built/${name}/`,
    logLevel: "warn",
    // A development build of React: only that mounts each component twice.
    mode: "development",
    define: { "process.env.NODE_ENV": '"development"' },
    resolve: { alias },
    esbuild: { jsx: "automatic" },
    build: { outDir: `built/${name}`, minify: false, target: "es2022" },
  });
}

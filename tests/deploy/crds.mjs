// Operators' objects against the schemas in npm packages: their validators find what is missing or of a wrong type,
// the TypeScript compiler finds keys that their types do not have.
//
// usage: crds.mjs PACKAGES < [{package, object}, ...]    prints for each the list of its faults
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const folder = path.resolve(process.argv[2]);
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const faults = asked.map(() => []);

/** Compiles the modules of a folder, and adds what the compiler says to the faults of the object of that number. */
function compile(dir) {
  const sources = fs.readdirSync(dir).map((name) => path.join(dir, name));
  if (sources.length === 0) return;
  const compiler = path.join(folder, "node_modules/typescript/bin/tsc");
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--pretty", "false", "--module", "nodenext"];
  try {
    execFileSync(process.execPath, [compiler, ...options, ...sources], { encoding: "utf8" });
  } catch (error) {
    for (const line of error.stdout.split("\n").filter((line) => line.includes("error TS"))) {
      const found = line.match(/(\d+)\.mts\(\d+,\d+\): error \w+: (.*)/);
      if (!found) throw new Error(line);
      faults[Number(found[1])].push(found[2]);
    }
  }
}

const dir = fs.mkdtempSync(path.join(folder, "objects-"));
try {
  for (const [idx, { package: from, object }] of asked.entries()) {
    const at = `@kubernetes-models/${from}/${object.apiVersion}/${object.kind}`;
    const file = path.join(folder, "node_modules", `${at}.js`);
    if (!fs.existsSync(file)) {
      faults[idx].push(`${object.apiVersion} has no ${object.kind}`);
      continue;
    }
    const module = await import(pathToFileURL(file));
    const Kind = module[object.kind] ?? module.default[object.kind];
    try {
      new Kind(object).validate();
    } catch (error) {
      faults[idx].push(error.message);
    }
    const json = JSON.stringify(object, null, 1);
    const source = `import type { I${object.kind} } from "${at}";\nexport const it: I${object.kind} = ${json};\n`;
    fs.writeFileSync(path.join(dir, `${idx}.mts`), source);
  }
  compile(dir);
} finally {
  fs.rmSync(dir, { recursive: true });
}
console.log(JSON.stringify(faults));

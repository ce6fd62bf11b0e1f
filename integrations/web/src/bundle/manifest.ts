/** Manifests, which describe a model before any of its graphs is loaded. See docs/bundle.md of infgen-rt. */

import { InfGenError } from "../errors.js";

/** The format of bundles that this package reads. */
export const FORMAT = 6;

/** The file of a bundle that describes it. */
export const MANIFEST = "manifest.json";

/** The graphs that belong to a latent space. Models of several spaces share all others. */
const OF_SPACE: ReadonlySet<string> = new Set([
  "statistics",
  "prefill",
  "trunk",
  "encode",
  "encode_statistics",
  "encode_latent",
]);

/** A context for pictures up to a certain scale. */
export interface Enlargement {
  /** The largest scale that the context is for. Null if it is for all scales. */
  readonly factor: number | null;
  /** The number of channels of the context. */
  readonly channels: number;
  /** How far a cell's context depends on the features, in cells. */
  readonly halo: number;
}

/** Bytes of memory per cell or token that a graph runs on, halos included. */
export interface Memory {
  readonly refinePerCell: number;
  readonly trunkPerCell: number;
  readonly statisticsPerCell: number;
  readonly decodePerToken: number;
}

/** The digest (hexadecimal) and the length in bytes of one file. */
export interface FileInfo {
  readonly sha256: string;
  readonly bytes: number;
}

/** One model for latents of one space, with its ONNX graphs. */
export interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly licence: string;
  readonly latentSpace: string;
  readonly latentChannels: number;
  readonly patch: number;
  /** The smallest and largest scale that the model was trained for. */
  readonly scaleRange: readonly [number, number];
  /** The reach of each graph: decode in tokens and context cells (null for all cells), prefill in cells. */
  readonly halo: { readonly tokens: number; readonly cells: number | null; readonly prefill: number };
  /** The smallest and largest side of a latent, in cells. */
  readonly latentSides: readonly [number, number];
  /** Contexts by rising factor. A model without enlargements has one for all scales. */
  readonly contexts: readonly Enlargement[];
  readonly prefillIsLocal: boolean;
  /** The blocks S and groups G of the statistics. Null if the model has none. */
  readonly moments: readonly [number, number] | null;
  readonly memory: Memory;
  /** The file of each graph, by its name. */
  readonly graphs: ReadonlyMap<string, string>;
  /** The file with the graphs' weights. Null if their own files have all weights. */
  readonly weights: string | null;
  /** The file with the weights of those graphs that belong to the latent space. Null if `weights` has these too. */
  readonly spaceWeights: string | null;
  /** All files of the bundle, by their names. */
  readonly files: ReadonlyMap<string, FileInfo>;
}

/** The name of a graph: its kind, followed by the factor of its enlargement if it has one. */
export function graphName(kind: "refine" | "decode", enlargement: Enlargement): string {
  return `${kind}${enlargement.factor ?? ""}`;
}

/** The file with a graph's weights. Null if its own file has them. */
export function weightsOf(manifest: Manifest, graph: string): string | null {
  return (OF_SPACE.has(graph) ? manifest.spaceWeights : null) ?? manifest.weights;
}

/** The smallest enlargement for a scale (vertical, horizontal), or the largest if the scale is beyond all. */
export function contextFor(manifest: Manifest, scale: readonly [number, number]): Enlargement {
  const largest = Math.max(...scale);
  const able = manifest.contexts.find((each) => each.factor === null || largest <= each.factor + 1e-6);
  return able ?? (manifest.contexts.at(-1) as Enlargement);
}

/**
 * Parse a manifest file.
 *
 * @returns its models, in the file's order.
 * @throws {InfGenError} if it is of another format, lacks something, or has no graphs that this package can run.
 */
export function readModels(text: string): Manifest[] {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new InfGenError("bundle", `${MANIFEST} is not valid JSON: copy or download the bundle again`, error);
  }
  if (!isRecord(data) || !("format" in data)) {
    throw new InfGenError(
      "bundle",
      `this ${MANIFEST} is not that of a bundle, which has a 'format': pass another folder or zip`,
    );
  }
  if (data["format"] !== FORMAT) {
    const remedy =
      Number(data["format"]) > FORMAT ? "upgrade infgen-rt-web" : "export the model again with infgen-export";
    throw new InfGenError(
      "bundle",
      `${MANIFEST} has format ${String(data["format"])}, and this version reads ${FORMAT}: ${remedy}`,
    );
  }
  const models = "models" in data ? data["models"] : [data];
  if (!Array.isArray(models) || models.length === 0) throw lacks("models");
  const files = filesOf(record(data, "files"));
  return models.map((each: unknown) => modelOf(isRecord(each) ? each : {}, files));
}

type Fields = Readonly<Record<string, unknown>>;

function modelOf(data: Fields, files: ReadonlyMap<string, FileInfo>): Manifest {
  const info = record(data, "model");
  const space = text(data, "latent_space");
  const recipes = data["recipes"];
  const recipe = Array.isArray(recipes)
    ? recipes.find((each: unknown) => isRecord(each) && each["target"] === "onnx")
    : undefined;
  if (!isRecord(recipe)) {
    throw new InfGenError(
      "bundle",
      `the model for ${space} latents has no ONNX graphs, which browsers run: export it with the recipe onnx-fp32`,
    );
  }
  if (Array.isArray(recipe["shapes"]) && recipe["shapes"].length > 0) {
    throw new InfGenError(
      "bundle",
      `the ONNX graphs for ${space} latents have fixed shapes, which this package does not fill: export them ` +
        "with the recipe onnx-fp32",
    );
  }
  const graphs = new Map(Object.entries(record(recipe, "graphs")).map(([name, file]) => [name, String(file)]));
  const halo = record(data, "halo");
  const enlargements = (Array.isArray(data["enlargements"]) ? data["enlargements"] : []).filter(isRecord);
  const contexts: Enlargement[] = enlargements.map((each) => ({
    factor: number(each, "factor"),
    channels: number(each, "channels"),
    halo: number(each, "halo"),
  }));
  if (contexts.length === 0) {
    contexts.push({ factor: null, channels: number(data, "context_channels"), halo: number(halo, "refine", 0) });
  }
  const moments = data["moments"];
  const weights = recipe["weights"];
  const spaceWeights = recipe["space_weights"];
  const model: Manifest = {
    name: text(info, "name"),
    version: text(info, "version"),
    licence: text(info, "licence"),
    latentSpace: space,
    latentChannels: number(data, "latent_channels"),
    patch: number(data, "patch"),
    scaleRange: pair(data["scale_range"], "scale_range"),
    halo: {
      tokens: number(halo, "tokens"),
      cells: halo["cells"] === null ? null : number(halo, "cells"),
      prefill: number(halo, "prefill", 0),
    },
    latentSides: pair(record(data, "shapes")["latent"], "shapes.latent"),
    contexts,
    prefillIsLocal: data["prefill_is_local"] === true,
    moments: Array.isArray(moments) ? pair(moments, "moments") : null,
    memory: memoryOf(isRecord(recipe["memory"]) ? recipe["memory"] : {}),
    graphs,
    weights: typeof weights === "string" ? weights : null,
    spaceWeights: typeof spaceWeights === "string" ? spaceWeights : null,
    files,
  };
  checkGraphs(model);
  return model;
}

/** Check that a model has the graphs that a picture needs, and that their files are listed. */
function checkGraphs(model: Manifest): void {
  const needed = ["prefill", ...model.contexts.map((each) => graphName("decode", each))];
  if (model.contexts.some((each) => each.factor !== null)) {
    needed.push(...model.contexts.map((each) => graphName("refine", each)));
  }
  const missing = needed.find((name) => !model.graphs.has(name));
  if (missing)
    throw new InfGenError(
      "bundle",
      `manifest: the ONNX recipe for ${model.latentSpace} lacks the graph '${missing}': export again`,
    );
  if (model.graphs.has("statistics") && !model.moments) throw lacks("moments");
  for (const name of [...model.graphs.values(), model.weights, model.spaceWeights]) {
    if (name !== null && !model.files.has(name))
      throw new InfGenError("bundle", `manifest: a recipe names '${name}', which is not in 'files': export again`);
  }
}

function memoryOf(data: Fields): Memory {
  // The defaults are those of Python for figures that were not measured.
  return {
    refinePerCell: number(data, "refine_per_cell", 32 * 2 ** 10),
    trunkPerCell: number(data, "trunk_per_cell", 0),
    statisticsPerCell: number(data, "statistics_per_cell", 8 * 2 ** 10),
    decodePerToken: number(data, "decode_per_token", 256 * 2 ** 10),
  };
}

function filesOf(data: Fields): ReadonlyMap<string, FileInfo> {
  const files = new Map<string, FileInfo>();
  for (const [name, value] of Object.entries(data)) {
    if (!isRecord(value)) throw lacks(`files.${name}`);
    if (name === "" || name.startsWith("/") || /[\\:]/.test(name) || name.split("/").includes("..")) {
      throw new InfGenError("bundle", `manifest: file name '${name}' does not stay inside the bundle: do not use it`);
    }
    files.set(name, { sha256: text(value, "sha256"), bytes: number(value, "bytes") });
  }
  return files;
}

function isRecord(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function record(data: Fields, name: string): Fields {
  const value = data[name];
  if (!isRecord(value)) throw lacks(name);
  return value;
}

function text(data: Fields, name: string): string {
  const value = data[name];
  if (typeof value !== "string") throw lacks(name);
  return value;
}

function number(data: Fields, name: string, missing?: number): number {
  const value = data[name] ?? missing;
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) throw lacks(name);
  return value;
}

function pair(value: unknown, name: string): readonly [number, number] {
  if (!Array.isArray(value) || value.length !== 2 || !value.every((each) => typeof each === "number"))
    throw lacks(name);
  return [value[0] as number, value[1] as number];
}

function lacks(name: string): InfGenError {
  return new InfGenError(
    "bundle",
    `manifest: '${name}' is missing or of a wrong type: copy, download or export the bundle again`,
  );
}

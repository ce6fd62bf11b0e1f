/** The table of latent spaces, which are the conventions that latents follow. */

import table from "./spaces.json" with { type: "json" };

import { InfGenError } from "../errors.js";

/** A convention for the meaning of a latent's numbers. See `infgen_rt.spaces.LatentSpace`. */
export interface LatentSpace {
  readonly name: string;
  readonly title: string;
  readonly channels: number;
  /** Whether pipelines return its latents packed into sequences [h/2 * w/2, 4 * channels]. */
  readonly packed: boolean;
  /** Whether programs return its latents patchified 2x2, as [4 * channels, h/2, w/2]. */
  readonly patchified: boolean;
  /** Whether ComfyUI's files hold the VAE's own latents, and not the model's. */
  readonly comfyuiRaw: boolean;
  /** Subtracted from the VAE's own latents: one number, or one per channel of the latent or of the patchified one. */
  readonly vaeMean: readonly number[];
  /** Divisors of the VAE's own latents, after the mean is subtracted. */
  readonly vaeStd: readonly number[];
}

/** All known latent spaces, by name. */
export const SPACES: ReadonlyMap<string, LatentSpace> = new Map(
  Object.entries(table).map(([name, each]) => [
    name,
    {
      name,
      title: each.title,
      channels: each.channels,
      packed: each.packed,
      patchified: each.patchified,
      comfyuiRaw: each.comfyui_raw,
      vaeMean: each.vae_mean,
      vaeStd: each.vae_std,
    },
  ]),
);

/** Look up a latent space by its name. */
export function latentSpace(name: string): LatentSpace {
  const found = SPACES.get(name);
  if (found) return found;
  throw new InfGenError(
    "latent",
    `latent space '${name}' is unknown to this version: known are ${[...SPACES.keys()].join(", ")}`,
  );
}

/**
 * The spaces that an array of a shape may be a latent of.
 *
 * @param shape the shape, with or without a batch axis of 1.
 * @param names the spaces to choose from, for example those of a bundle.
 */
export function spacesOf(shape: readonly number[], names: readonly string[] = [...SPACES.keys()]): LatentSpace[] {
  return names.map(latentSpace).filter((space) => {
    const known = space.patchified ? [space.channels, 4 * space.channels] : [space.channels];
    const [first = 0, second = 0, third = 0] = shape;
    if (space.packed && [2, 3].includes(shape.length) && shape.at(-1) === 4 * space.channels) return true;
    if (shape.length === 3) return known.includes(first);
    if (shape.length === 4) return known.includes(second) || (known.includes(first) && second === 1);
    return shape.length === 5 && known.includes(second) && third === 1;
  });
}

/** Where the files of a bundle come from: an address, a zip, or files that a user chose. */

import { unzipSync } from "fflate";

import { InfGenError, oneLine } from "../errors.js";

/** Reads the files of a bundle by their names, with forward slashes. */
export interface BundleFiles {
  /** What the bundle is called in messages. */
  readonly title: string;
  /** The content of a file. */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
}

/** A bundle's folder on a server. */
export function bundleAt(address: string | URL): BundleFiles {
  const here = typeof location === "undefined" ? undefined : location.href;
  const folder = new URL(String(address), here);
  if (!folder.pathname.endsWith("/")) folder.pathname += "/";
  return {
    title: folder.href,
    async read(name) {
      let response: Response;
      try {
        response = await fetch(new URL(name.split("/").map(encodeURIComponent).join("/"), folder));
      } catch (error) {
        throw new InfGenError(
          "bundle",
          `${folder.href}${name} cannot be fetched: ${oneLine(error)}; look at the address and the connection`,
          error,
        );
      }
      if (!response.ok) {
        throw new InfGenError(
          "bundle",
          `${folder.href}${name} cannot be fetched: the server answered ${response.status}; look at the bundle's ` +
            "address",
        );
      }
      return new Uint8Array(await response.arrayBuffer());
    },
  };
}

/** A bundle as a zip, with its manifest at the top. */
export function bundleInZip(content: Uint8Array, title = "the zip"): BundleFiles {
  return {
    title,
    read(name) {
      let found: Uint8Array | undefined;
      try {
        found = unzipSync(content, { filter: (file) => file.name === name })[name];
      } catch (error) {
        return Promise.reject(
          new InfGenError(
            "bundle",
            `${title} is not a bundle's zip, or is damaged: ${oneLine(error)}; download it again`,
            error,
          ),
        );
      }
      if (found) return Promise.resolve(new Uint8Array(found));
      return Promise.reject(
        new InfGenError("bundle", `${title} has no ${name} at its top: pass a bundle's zip, or download it again`),
      );
    },
  };
}

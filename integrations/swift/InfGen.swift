// Decodes tiles of a picture with the Core ML graphs of an infgen-rt bundle. docs/coreml.md says how to use it.
//
// All but the last part needs no Core ML, so that it can be compiled and tested on any system. The comments call an
// array [C, h, w], a cell and a token what docs/bundle.md calls them.

import Foundation

// MARK: - The manifest

/// A model of a bundle: the parts of `manifest.json` that decoding needs.
public struct Model: Decodable, Sendable {
    public struct Halo: Decodable, Sendable {
        public let tokens: Int
        public let cells: Double?
        public let prefill: Int
        public let refine: Int
    }

    public struct Enlargement: Decodable, Sendable {
        public let factor: Int?
        public let halo: Int
    }

    public struct Shape: Decodable, Sendable {
        /// Height and width.
        public let tokens: [Int]
        public let context: [Int]
    }

    public struct Recipe: Decodable, Sendable {
        public let name: String
        public let target: String
        public let graphs: [String: String]
        public let shapes: [Shape]
        /// Missing in bundles that an older exporter wrote.
        public let computeUnits: [String: String]?
    }

    public let latentSpace: String
    public let latentChannels: Int
    public let patch: Int
    public let halo: Halo
    public let moments: [Int]?
    public let prefillIsLocal: Bool?
    public let enlargements: [Enlargement]?
    public let recipes: [Recipe]

    /// The model for a latent space, or the bundle's first.
    public static func of(_ manifest: Data, space: String? = nil) throws -> Model {
        struct Several: Decodable { let models: [Model]? }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let several = try decoder.decode(Several.self, from: manifest).models
        let models = try several ?? [decoder.decode(Model.self, from: manifest)]
        guard let found = models.first(where: { space == nil || $0.latentSpace == space }) else {
            throw InfGenError.noModel(space ?? "any", models.map(\.latentSpace))
        }
        return found
    }

    /// The smallest enlargement for a scale, or the largest if the scale is beyond all.
    public func enlargement(scale: Double) -> Enlargement {
        let all = enlargements ?? []
        let able = all.first { scale <= Double($0.factor ?? Int.max) + 1e-6 }
        return able ?? all.last ?? Enlargement(factor: nil, halo: halo.refine)
    }

    /// The recipe with graphs for Core ML.
    public func recipe(named name: String? = nil) throws -> Recipe {
        let able = recipes.first { $0.target == "coreml" && (name == nil || $0.name == name) }
        guard let able else { throw InfGenError.noRecipe(recipes.map(\.name)) }
        return able
    }
}

public enum InfGenError: Error, Equatable {
    /// The bundle has no model for a latent space. It has models for these.
    case noModel(String, [String])
    /// The bundle has no recipe for Core ML. It has these.
    case noRecipe([String])
    /// The bundle has no such graph.
    case noGraph(String)
    /// The package has no weights of its own. `infgen-rt unpack` writes packages that have them.
    case incompletePackage(String)
    /// A graph gave no such output.
    case noOutput(String)
    /// The latent is not [1, C, h, w] with the channels of the model, which are given.
    case wrongLatent([Int], channels: Int)
    /// The tile is not inside the picture, or larger than the shapes of the recipe.
    case wrongTile(Box)
    /// The pixels of the tile are not finite: the latent has such numbers, or the precision of the graphs is too low.
    case notFinite(Box)
}

// MARK: - Coordinates

/// The step from one token's centre to the next, in cells.
func stepOf(_ pixels: Int, _ cells: Int, _ patch: Int) -> Double {
    return 1 / scaleOf(pixels, cells, patch)
}

/// The pixels of the picture for one pixel of the latent's own size.
func scaleOf(_ pixels: Int, _ cells: Int, _ patch: Int) -> Double {
    return Double(pixels) / Double(patch * cells)
}

/// The centre of a token, or with a step of 1 of a cell. It is rounded once, so that a tile gets what the picture has.
func centreOf(_ index: Int, _ step: Double) -> Float {
    return Float((Double(index) + 0.5) * step)
}

/// How far from its centre a token sees, in cells.
func reachOf(_ step: Double, _ radius: Double) -> Double {
    return max(radius, step / 2 + max(1, 0.375 * step))
}

/// The first cell that tokens see, of which the first is `start`.
func firstCell(_ start: Int, _ step: Double, _ radius: Double, _ count: Int) -> Int {
    return min(max(Int(floor((Double(start) + 0.5) * step - reachOf(step, radius) - 0.5)), 0), count - 1)
}

/// The cell after the last one that tokens see, of which the last is `stop` - 1.
func endCell(_ stop: Int, _ step: Double, _ radius: Double, _ count: Int) -> Int {
    return min(Int(ceil((Double(stop) - 0.5) * step + reachOf(step, radius) - 0.5)) + 1, count)
}

/// A rectangle, in the unit that the context says.
public struct Box: Equatable, Sendable {
    public var x, y, width, height: Int

    public init(x: Int, y: Int, width: Int, height: Int) {
        (self.x, self.y, self.width, self.height) = (x, y, width, height)
    }

    public var right: Int { x + width }
    public var bottom: Int { y + height }

    public func intersection(_ other: Box) -> Box {
        let left = max(x, other.x), top = max(y, other.y)
        let width = min(right, other.right) - left, height = min(bottom, other.bottom) - top
        return Box(x: left, y: top, width: max(width, 0), height: max(height, 0))
    }

    /// The box with a margin on every side, clipped to another.
    public func grown(_ margin: Int, within whole: Box) -> Box {
        Box(x: x - margin, y: y - margin, width: width + 2 * margin, height: height + 2 * margin).intersection(whole)
    }

    public func relative(to origin: Box) -> Box {
        Box(x: x - origin.x, y: y - origin.y, width: width, height: height)
    }
}

/// The tokens of a picture over the cells of a latent.
public struct Grid: Sendable {
    public let cells, picture: Box
    public let patch: Int

    public init(cells: Box, picture: Box, patch: Int) {
        (self.cells, self.picture, self.patch) = (cells, picture, patch)
    }

    public var tokens: Box {
        Box(x: 0, y: 0, width: (picture.width + patch - 1) / patch, height: (picture.height + patch - 1) / patch)
    }

    var stepY: Double { stepOf(picture.height, cells.height, patch) }
    var stepX: Double { stepOf(picture.width, cells.width, patch) }

    /// Vertical and horizontal.
    public var scale: [Float] {
        [Float(scaleOf(picture.height, cells.height, patch)), Float(scaleOf(picture.width, cells.width, patch))]
    }

    public var largestScale: Double {
        max(scaleOf(picture.height, cells.height, patch), scaleOf(picture.width, cells.width, patch))
    }

    /// The pixels of tokens, clipped to the picture.
    public func pixels(of tokens: Box) -> Box {
        Box(x: tokens.x * patch, y: tokens.y * patch, width: tokens.width * patch, height: tokens.height * patch)
            .intersection(picture)
    }

    /// The cells that tokens see.
    public func context(of tokens: Box, radius: Double?) -> Box {
        guard let radius else { return cells }
        let y = firstCell(tokens.y, stepY, radius, cells.height), x = firstCell(tokens.x, stepX, radius, cells.width)
        let bottom = max(endCell(tokens.bottom, stepY, radius, cells.height), y + 1)
        let right = max(endCell(tokens.right, stepX, radius, cells.width), x + 1)
        return Box(x: x, y: y, width: right - x, height: bottom - y)
    }
}

// MARK: - Arrays

/// An array of float32 in row-major order.
public struct Tensor: Equatable, Sendable {
    public var shape: [Int]
    public var values: [Float]

    public init(shape: [Int], values: [Float]) {
        precondition(values.count == shape.reduce(1, *), "the shape does not have as many values")
        (self.shape, self.values) = (shape, values)
    }

    public init(_ values: [Float]) {
        self.init(shape: [values.count], values: values)
    }

    /// A box of the last two axes of [1, C, h, w].
    public func cut(_ box: Box) -> Tensor {
        var part: [Float] = []
        part.reserveCapacity(shape[1] * box.width * box.height)
        for channel in 0..<shape[1] {
            for row in box.y..<box.bottom {
                let start = (channel * shape[2] + row) * shape[3] + box.x
                part += values[start..<start + box.width]
            }
        }
        return Tensor(shape: [1, shape[1], box.height, box.width], values: part)
    }

    /// [1, C, h, w] with zeros below and to the right, up to a height and a width.
    func padded(height: Int, width: Int) -> Tensor {
        var part: [Float] = []
        part.reserveCapacity(shape[1] * height * width)
        for channel in 0..<shape[1] {
            for row in 0..<shape[2] {
                let start = (channel * shape[2] + row) * shape[3]
                part += values[start..<start + shape[3]]
                part += repeatElement(0, count: width - shape[3])
            }
            part += repeatElement(0, count: (height - shape[2]) * width)
        }
        return Tensor(shape: [1, shape[1], height, width], values: part)
    }

    /// The levels of planes [1, 3, h, w] of finite numbers, as interleaved RGB.
    public func levels() -> [UInt8] {
        let plane = shape[2] * shape[3]
        var levels = [UInt8](repeating: 0, count: 3 * plane)
        for channel in 0..<3 {
            for index in 0..<plane {
                let value = min(max(values[channel * plane + index], 0), 1)
                levels[3 * index + channel] = UInt8(value * 255 + 0.5)
            }
        }
        return levels
    }
}

// MARK: - The chain from a latent to pixels

/// A graph that is loaded.
public protocol Graph {
    /// Runs it on inputs by name, and returns the output of that name.
    func run(_ inputs: [String: Tensor], output: String) throws -> Tensor
}

/// A picture of a latent at one size. Each tile runs the graphs on the part of the latent that it needs.
public final class Picture {
    public let grid: Grid
    public let enlargement: Model.Enlargement
    private let model: Model
    private let shapes: [Model.Shape]
    private let graphs: [String: any Graph]
    private let latent: Tensor
    private var moments: Tensor?

    /// - Parameters:
    ///   - latent: [1, C, h, w], in the normalisation of the diffusion model.
    ///   - graphs: The graphs that `names` lists, by name.
    public init(
        latent: Tensor, width: Int, height: Int, model: Model, recipe: Model.Recipe, graphs: [String: any Graph]
    ) throws {
        guard latent.shape.count == 4, latent.shape[0] == 1, latent.shape[1] == model.latentChannels else {
            throw InfGenError.wrongLatent(latent.shape, channels: model.latentChannels)
        }
        let cells = Box(x: 0, y: 0, width: latent.shape[3], height: latent.shape[2])
        grid = Grid(cells: cells, picture: Box(x: 0, y: 0, width: width, height: height), patch: model.patch)
        enlargement = model.enlargement(scale: grid.largestScale)
        (self.model, self.latent, self.graphs, shapes) = (model, latent, graphs, recipe.shapes)
        if recipe.graphs["statistics"] != nil, let shape = model.moments {
            let unknown = Tensor(shape: [2] + shape, values: Array(repeating: -1, count: 2 * shape[0] * shape[1]))
            let rows = [Float](repeating: 1 / Float(cells.height), count: cells.height)
            let columns = [Float](repeating: 1 / Float(cells.width), count: cells.width)
            moments = try run(
                "statistics",
                ["latent": latent, "share_y": Tensor(rows), "share_x": Tensor(columns), "known": unknown],
                output: "moments")
        }
    }

    /// The graphs that pictures up to a scale need.
    public static func names(_ recipe: Model.Recipe, _ enlargement: Model.Enlargement) -> [String] {
        let suffix = enlargement.factor.map(String.init) ?? ""
        let all = ["statistics", "prefill", "trunk", "refine" + suffix, "decode" + suffix]
        return all.filter { recipe.graphs[$0] != nil }
    }

    /// Decodes a tile.
    ///
    /// - Parameter tile: The tile in tokens, inside `grid.tokens`.
    /// - Returns: The tile's box in pixels, and its planes [1, 3, height, width], about 0 to 1.
    public func decode(_ tile: Box) throws -> (box: Box, planes: Tensor) {
        guard tile.width > 0, tile.height > 0, tile.intersection(grid.tokens) == tile else {
            throw InfGenError.wrongTile(tile)
        }
        let tokens = tile.grown(model.halo.tokens, within: grid.tokens)
        let cells = grid.context(of: tokens, radius: model.halo.cells)
        var inputs = [
            "context": try context(of: cells),
            "key_y": centres(cells.y, cells.height, 1), "key_x": centres(cells.x, cells.width, 1),
            "token_y": centres(tokens.y, tokens.height, grid.stepY),
            "token_x": centres(tokens.x, tokens.width, grid.stepX),
            "extent": Tensor([Float(grid.cells.height), Float(grid.cells.width)]),
            "scale": Tensor(grid.scale),
        ]
        if !shapes.isEmpty { try fill(&inputs, tokens: tokens, cells: cells) }
        let image = try run("decode", inputs, output: "image")
        let box = grid.pixels(of: tile)
        let planes = image.cut(box.relative(to: grid.pixels(of: tokens)))
        guard planes.values.allSatisfy(\.isFinite) else { throw InfGenError.notFinite(tile) }
        return (box, planes)
    }

    /// The context of some cells. The graphs run on a halo around them, which is dropped.
    private func context(of cells: Box) throws -> Tensor {
        let refines = graphs["refine" + suffix] != nil
        let refined = refines ? cells.grown(enlargement.halo, within: grid.cells) : cells
        let local = moments != nil || model.prefillIsLocal == true
        let seen = local ? refined.grown(model.halo.prefill, within: grid.cells) : grid.cells
        let part = latent.cut(seen)
        let made = try moments.map { try run("prefill", ["latent": part, "moments": $0], output: "features") }
        let all = try made ?? run("prefill", ["latent": part], output: refines ? "features" : "context")
        let features = all.cut(refined.relative(to: seen))
        guard refines else { return features }
        let context: Tensor
        if graphs["trunk"] != nil {
            let fine = try run("trunk", ["features": features], output: "fine")
            context = try run("refine", ["features": features, "fine": fine], output: "context")
        } else {
            context = try run("refine", ["features": features], output: "context")
        }
        return context.cut(cells.relative(to: refined))
    }

    private var suffix: String { enlargement.factor.map(String.init) ?? "" }

    private func centres(_ start: Int, _ count: Int, _ step: Double) -> Tensor {
        Tensor((start..<start + count).map { centreOf($0, step) })
    }

    /// Fills inputs up to the smallest shape that the graph takes: zeros, and coordinates that continue.
    private func fill(_ inputs: inout [String: Tensor], tokens: Box, cells: Box) throws {
        let fitting = shapes.first {
            $0.tokens[0] >= tokens.height && $0.tokens[1] >= tokens.width
                && $0.context[0] >= cells.height && $0.context[1] >= cells.width
        }
        guard let shape = fitting else { throw InfGenError.wrongTile(tokens) }
        inputs["context"] = inputs["context"]?.padded(height: shape.context[0], width: shape.context[1])
        inputs["key_y"] = centres(cells.y, shape.context[0], 1)
        inputs["key_x"] = centres(cells.x, shape.context[1], 1)
        inputs["token_y"] = centres(tokens.y, shape.tokens[0], grid.stepY)
        inputs["token_x"] = centres(tokens.x, shape.tokens[1], grid.stepX)
    }

    private func run(_ kind: String, _ inputs: [String: Tensor], output: String) throws -> Tensor {
        let name = kind == "refine" || kind == "decode" ? kind + suffix : kind
        guard let graph = graphs[name] else { throw InfGenError.noGraph(name) }
        return try graph.run(inputs, output: output)
    }
}

// MARK: - Core ML

#if canImport(CoreML)
import CoreML

/// A graph in Core ML.
public final class CoreMLGraph: Graph {
    private let model: MLModel

    /// - Parameters:
    ///   - package: An `.mlpackage` with its own weights, such as `infgen-rt unpack` writes.
    ///   - cache: A folder for compiled models, because compiling can take seconds. Give each version of a bundle and
    ///     of the system a folder of its own.
    public init(package: URL, units: MLComputeUnits, cache: URL) async throws {
        let parts = package.appendingPathComponent("Data/com.apple.CoreML/weights/weight.bin.parts.json")
        guard !FileManager.default.fileExists(atPath: parts.path) else {
            throw InfGenError.incompletePackage(package.lastPathComponent)
        }
        let compiled = cache.appendingPathComponent(package.deletingPathExtension().lastPathComponent + ".mlmodelc")
        if !FileManager.default.fileExists(atPath: compiled.path) {
            let made = try await MLModel.compileModel(at: package)
            try FileManager.default.createDirectory(at: cache, withIntermediateDirectories: true)
            do {
                try FileManager.default.moveItem(at: made, to: compiled)
            } catch where FileManager.default.fileExists(atPath: compiled.path) {
                // Another task, or another process, has compiled it in the meantime.
                try? FileManager.default.removeItem(at: made)
            }
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }

    public func run(_ inputs: [String: Tensor], output: String) throws -> Tensor {
        let values = inputs.mapValues {
            MLFeatureValue(shapedArray: MLShapedArray<Float>(scalars: $0.values, shape: $0.shape))
        }
        let result = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: values))
        guard let array = result.featureValue(for: output)?.multiArrayValue else {
            throw InfGenError.noOutput(output)
        }
        // The array may have gaps between its rows, which `scalars` leaves out.
        let shaped = MLShapedArray<Float>(converting: array)
        return Tensor(shape: shaped.shape, values: shaped.scalars)
    }
}

extension Model.Recipe {
    /// The compute units that the manifest names for a graph.
    public func units(_ graph: String) -> MLComputeUnits {
        switch computeUnits?[graph] {
        case "cpuOnly": return .cpuOnly
        case "cpuAndNeuralEngine": return .cpuAndNeuralEngine
        case "all": return .all
        default: return .cpuAndGPU  // what suits graphs that take any size
        }
    }
}

extension Picture {
    /// Opens a bundle, which is a folder, and loads the graphs that a picture of this size needs.
    public static func open(
        bundle: URL, space: String? = nil, recipe name: String? = nil, cache: URL,
        latent: Tensor, width: Int, height: Int
    ) async throws -> Picture {
        let model = try Model.of(Data(contentsOf: bundle.appendingPathComponent("manifest.json")), space: space)
        let recipe = try model.recipe(named: name)
        guard latent.shape.count == 4 else {
            throw InfGenError.wrongLatent(latent.shape, channels: model.latentChannels)
        }
        let cells = Box(x: 0, y: 0, width: latent.shape[3], height: latent.shape[2])
        let picture = Box(x: 0, y: 0, width: width, height: height)
        let scale = Grid(cells: cells, picture: picture, patch: model.patch).largestScale
        var graphs: [String: any Graph] = [:]
        for graph in names(recipe, model.enlargement(scale: scale)) {
            let package = bundle.appendingPathComponent(recipe.graphs[graph]!)
            graphs[graph] = try await CoreMLGraph(package: package, units: recipe.units(graph), cache: cache)
        }
        return try Picture(
            latent: latent, width: width, height: height, model: model, recipe: recipe, graphs: graphs)
    }
}
#endif

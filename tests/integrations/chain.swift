// Decodes tiles with InfGen.swift. The graphs run in the process that has started this one: a request and its answer
// are one line of JSON each, with the arrays' float32 in base64.

import Foundation

struct Packed: Codable {
    let shape: [Int]
    let values: Data

    init(_ tensor: Tensor) {
        (shape, values) = (tensor.shape, tensor.values.withUnsafeBytes { Data($0) })
    }

    var tensor: Tensor {
        var floats = [Float](repeating: 0, count: values.count / 4)
        _ = floats.withUnsafeMutableBytes { values.copyBytes(to: $0) }
        return Tensor(shape: shape, values: floats)
    }
}

struct Request: Codable {
    let graph: String
    let inputs: [String: Packed]
    let output: String
}

struct Job: Codable {
    let manifest: String
    let space: String
    let latent: Packed
    let size: [Int]
    let tile: [Int]
}

struct Result: Codable {
    let enlargement: Int?
    let box: [Int]
    let planes: Packed
    let levels: [UInt8]
}

func say<T: Encodable>(_ value: T) throws {
    FileHandle.standardOutput.write(try JSONEncoder().encode(value) + Data("\n".utf8))
}

func hear<T: Decodable>(_ type: T.Type) throws -> T {
    try JSONDecoder().decode(type, from: Data((readLine() ?? "").utf8))
}

struct Asked: Graph {
    let name: String

    func run(_ inputs: [String: Tensor], output: String) throws -> Tensor {
        try say(Request(graph: name, inputs: inputs.mapValues(Packed.init), output: output))
        return try hear(Packed.self).tensor
    }
}

let job = try hear(Job.self)
let model = try Model.of(Data(contentsOf: URL(fileURLWithPath: job.manifest)), space: job.space)
let recipe = try model.recipe()
let latent = job.latent.tensor
let cells = Box(x: 0, y: 0, width: latent.shape[3], height: latent.shape[2])
let whole = Box(x: 0, y: 0, width: job.size[0], height: job.size[1])
let scale = Grid(cells: cells, picture: whole, patch: model.patch).largestScale
let names = Picture.names(recipe, model.enlargement(scale: scale))
let picture = try Picture(
    latent: latent, width: job.size[0], height: job.size[1], model: model, recipe: recipe,
    graphs: Dictionary(uniqueKeysWithValues: names.map { ($0, Asked(name: $0)) }))
let (box, planes) = try picture.decode(Box(x: job.tile[0], y: job.tile[1], width: job.tile[2], height: job.tile[3]))
try say(
    Result(
        enlargement: picture.enlargement.factor, box: [box.x, box.y, box.width, box.height],
        planes: Packed(planes), levels: planes.levels()))

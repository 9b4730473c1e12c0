// swift-tools-version:5.9
import PackageDescription

let name = "EdgeApp"
let runtime = "coreml"

// ExecuTorch's version is the one that wrote the file. Its backend registers itself only where all of it is linked.
let executorch = runtime == "executorch"
let packages: [Package.Dependency] =
  executorch ? [.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.0.0")] : []
let products: [Target.Dependency] = ["executorch", "backend_xnnpack", "kernels_optimized"].map {
  .product(name: $0, package: "executorch")
}

let package = Package(
  name: name,
  platforms: [.iOS("17.0"), .macOS("14.0")],
  products: [.library(name: name, targets: [name])],
  dependencies: packages,
  targets: [
    .target(
      name: name,
      dependencies: executorch ? products : [],
      resources: [
        .copy("Resources/app.json"), .copy("Resources/model"), .copy("Resources/PrivacyInfo.xcprivacy"),
      ],
      linkerSettings: executorch ? [.unsafeFlags(["-Wl,-all_load"])] : []),
    .testTarget(name: name + "Tests", dependencies: [.byName(name: name)]),
  ]
)

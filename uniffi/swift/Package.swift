// swift-tools-version: 5.9
// The generated sources, around a library that is linked in. `cargo xtask bindings swift` copies this and
// them to target/bindings/swift.
import PackageDescription

let package = Package(
    name: "MatrixSticky",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "MatrixSticky", targets: ["MatrixSticky"])],
    targets: [
        // The C side: a header and a module map. On Apple's systems an XCFramework takes its place, made of
        // the static library for each platform:
        //   xcodebuild -create-xcframework -library libmatrix_sdk_sticky_ffi.a \
        //     -headers Sources/MatrixStickyFFI/include -output MatrixStickyFFI.xcframework
        //   .binaryTarget(name: "MatrixStickyFFI", path: "MatrixStickyFFI.xcframework")
        .systemLibrary(name: "MatrixStickyFFI", path: "Sources/MatrixStickyFFI/include"),
        .target(
            name: "MatrixSticky",
            dependencies: ["MatrixStickyFFI"],
            linkerSettings: [.linkedLibrary("matrix_sdk_sticky_ffi")]
        ),
    ]
)

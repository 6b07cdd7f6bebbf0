// An Android library (AAR). The sources are those of the JAR; for each ABI its library stands in
// src/main/jniLibs/<abi>, e.g. by cargo-ndk, after `cargo xtask bindings kotlin`, which begins anew:
//
//   cargo ndk -t arm64-v8a -t x86_64 -o target/bindings/kotlin/src/main/jniLibs \
//     build --profile ffi -p matrix-sdk-sticky-ffi
plugins {
    id("com.android.library") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.4.21"
}

group = "org.matrix.sticky"
version = "0.1.0"

android {
    namespace = "org.matrix.sticky"
    compileSdk = 36
    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
    }
    compileOptions {
        // `java.time` is used, which Android has since 26.
        isCoreLibraryDesugaringEnabled = true
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    // The libraries for the JVM are not for a phone.
    sourceSets["main"].resources.setSrcDirs(emptyList<String>())
}

kotlin { jvmToolchain(17) }

dependencies {
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.11.0")
    implementation("net.java.dev.jna:jna:5.19.1@aar")
    coreLibraryDesugaring("com.android.tools:desugar_jdk_libs:2.1.5")
}

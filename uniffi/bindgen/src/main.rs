//! UniFFI's own program, of the release that the library is built with.

fn main() {
    uniffi::uniffi_bindgen_main();
}

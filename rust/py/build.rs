//! How the extension is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // There rustc links with LLD, which can fold functions that compile to the same code. No address of one is compared.
    if std::env::var("TARGET").as_deref() == Ok("x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-cdylib=-Wl,--icf=all");
    }
}

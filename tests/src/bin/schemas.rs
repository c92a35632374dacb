//! `make schemas`: writes the JSON Schemas of the plugins' configurations to `conflists/schema/`.

use netns_tests::schema;

fn main() -> std::io::Result<()> {
    std::fs::create_dir_all(schema::folder())?;
    for (file, schema) in schema::all() {
        std::fs::write(schema::folder().join(&file), schema::text(&schema))?;
        println!("conflists/schema/{file}");
    }
    Ok(())
}

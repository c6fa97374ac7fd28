//! Protocol Buffers: whether a payload is one message of the schema in its binary encoding, and whether a version may follow another one.
//! Pure.

mod breaking;
#[cfg(test)]
mod rules;
mod wire;

use prost_reflect::{FileDescriptor, MessageDescriptor};
use protox::Compiler;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::contains::Difference;
use super::violation::Violation;

/// A file of Protobuf, ready to use. Its first message is what a payload is.
#[derive(Debug)]
pub(super) struct ProtobufSchema {
    file: FileDescriptor,
    payload: MessageDescriptor,
}

/// What the file is called in errors.
const NAME: &str = "schema.proto";

/// The one file that is there, besides those of Google's own that come with the compiler.
struct Source(String);

impl FileResolver for Source {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == NAME { File::from_source(name, &self.0) } else { Err(protox::Error::file_not_found(name)) }
    }
}

impl ProtobufSchema {
    /// Compiles a file; the error says where it is wrong.
    pub fn read(text: &str) -> Result<ProtobufSchema, String> {
        let mut files = ChainFileResolver::new();
        files.add(Source(text.to_owned()));
        files.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(files);
        // Only what is formatted for debugging has line and column.
        compiler.include_imports(true).open_file(NAME).map_err(|e| format!("{e:?}"))?;
        let file = compiler.descriptor_pool().get_file_by_name(NAME).ok_or("the file is not there after compiling")?;
        let payload = file.messages().next().ok_or("it has no message; the first one is what a payload is")?;
        Ok(ProtobufSchema { file, payload })
    }

    /// Whether a payload is exactly one message, with nothing in it that this version does not have.
    pub fn check(&self, payload: &[u8]) -> Result<(), Violation> {
        wire::check(&self.payload, payload)
    }

    /// What buf would call breaking between an older version and this one.
    pub fn breaks(&self, old: &ProtobufSchema) -> Vec<Difference> {
        breaking::differences(old, self)
    }
}

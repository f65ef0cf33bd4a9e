//! How messages of connections that thousands keep open are encoded: prost's way, with small buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// What the buffers begin with, in bytes; they grow with their messages, and stay so. tonic's own default is 8 KiB in each
/// direction, most of which is never used. What a node sends has room for what it says of some twenty volumes; what
/// it is sent is a few words.
const DECODE_BUFFER_BYTES: usize = 2 * 1024;
const ENCODE_BUFFER_BYTES: usize = 128;
/// How much is encoded before it is sent, in bytes.
const SEND_AT_BYTES: usize = 8 * 1024;

/// The codec of the node protocol: a leader has a stream for each node.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(ENCODE_BUFFER_BYTES, SEND_AT_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(DECODE_BUFFER_BYTES, SEND_AT_BYTES))
    }
}

package dev.edgekd

import dev.edgekd.text.Encoding

/** The tokenizer of a bundle. A bundle has one, in *Encoder.kt, which also defines `openEncoder`. */
internal interface Encoder : AutoCloseable {
    /** As the model reads it: with special tokens, and cut at its end to the model's length. */
    fun encode(text: String): Encoding

    /** Two texts; what is too much is cut off the longer one first. */
    fun encodePair(first: String, second: String): Encoding

    /** In full and without special tokens. */
    fun encodeBare(text: String): Encoding

    /** How many special tokens a pair has. */
    val specialsOfPair: Int
}

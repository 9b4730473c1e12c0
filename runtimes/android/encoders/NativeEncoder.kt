package dev.edgekd

import dev.edgekd.text.Tokenizer
import dev.edgekd.text.TokenizerFile

/** The tokenizer in dev.edgekd.text, of this library. */
internal fun openEncoder(files: BundleFiles, maxLength: Int): Encoder =
    NativeEncoder(TokenizerFile.read(files.text("model/tokenizer.json")), maxLength)

private class NativeEncoder(private val tokenizer: Tokenizer, private val maxLength: Int) : Encoder {
    override val specialsOfPair get() = tokenizer.specialsOfPair

    override fun encode(text: String) = tokenizer.encode(text, maxLength)

    override fun encodePair(first: String, second: String) = tokenizer.encodePair(first, second, maxLength)

    override fun encodeBare(text: String) = tokenizer.encodeBare(text)

    override fun close() = Unit
}

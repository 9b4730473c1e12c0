package dev.edgekd.text

/**
 * A text under way from what was written to what the model reads, each character with its place in the original.
 * Places count characters (code points); [Places] makes Kotlin's of them.
 */
internal class AlignedText private constructor(
    val text: IntArray,
    private val starts: IntArray,
    private val ends: IntArray,
) {
    val size get() = text.size

    fun slice(start: Int, end: Int) =
        AlignedText(text.copyOfRange(start, end), starts.copyOfRange(start, end), ends.copyOfRange(start, end))

    /** Where these characters (at least one) lie in the original. */
    fun startOf(character: Int) = starts[character]

    fun endOf(character: Int) = ends[character]

    fun keep(wanted: (Int) -> Boolean) = built { into ->
        for (i in text.indices) if (wanted(text[i])) into.add(text[i], starts[i], ends[i])
    }

    fun map(function: (Int) -> Int) = AlignedText(IntArray(size) { function(text[it]) }, starts, ends)

    /** Each character becomes several. */
    fun expand(function: (Int) -> IntArray) = built { into ->
        for (i in text.indices) for (c in function(text[i])) into.add(c, starts[i], ends[i])
    }

    /**
     * Replaces the text. Each character either takes the place of the next old one or comes in addition (`inserted`),
     * and then shares the origin of the old character before: so the library counts, and so offsets come out the same.
     */
    fun replace(characters: IntArray, inserted: BooleanArray) = built { into ->
        var taken = 0
        for (i in characters.indices) {
            when {
                !inserted[i] -> into.add(characters[i], starts[taken], ends[taken])
                taken == 0 -> into.add(characters[i], 0, 0)
                else -> into.add(characters[i], starts[taken - 1], ends[taken - 1])
            }
            if (!inserted[i]) taken++
        }
    }

    /** Before the first character, whose origin it takes; nothing where the text is empty. */
    fun prepend(before: IntArray): AlignedText {
        if (size == 0) return this
        return built { into ->
            for (c in before) into.add(c, starts[0], ends[0])
            into.add(this, 0, size)
        }
    }

    /** Each match, of a length that is not 0, becomes `content`, which takes the origin of its last character. */
    fun substitute(content: IntArray, lengthAt: (Int) -> Int) = built { into ->
        var place = 0
        while (place < size) {
            val length = lengthAt(place)
            val last = place + length - 1
            if (length == 0) {
                into.add(text[place], starts[place], ends[place])
            } else {
                for (c in content) into.add(c, starts[last], ends[last])
            }
            place += maxOf(length, 1)
        }
    }

    private fun built(fill: (Builder) -> Unit) = Builder(size + 8).also(fill).build()

    private class Builder(capacity: Int) {
        private val text = Ints(capacity)
        private val starts = Ints(capacity)
        private val ends = Ints(capacity)

        fun add(c: Int, start: Int, end: Int) {
            text.add(c)
            starts.add(start)
            ends.add(end)
        }

        fun add(other: AlignedText, start: Int, end: Int) {
            for (i in start until end) add(other.text[i], other.starts[i], other.ends[i])
        }

        fun build() = AlignedText(text.toArray(), starts.toArray(), ends.toArray())
    }

    companion object {
        fun of(text: String): AlignedText {
            val characters = codePointsOf(text)
            return AlignedText(characters, IntArray(characters.size) { it }, IntArray(characters.size) { it + 1 })
        }
    }
}

internal typealias Normalizer = (AlignedText) -> AlignedText

/** The parts of a text that is not empty; an empty part is dropped by the caller. */
internal typealias PreTokenizer = (AlignedText) -> List<AlignedText>

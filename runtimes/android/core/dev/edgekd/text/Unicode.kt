package dev.edgekd.text

/**
 * What the tokenizer must know of characters, from [UnicodeTables] and not from the device, whose Unicode is of
 * another year.
 */
internal object Unicode {
    private val flags = Runs(UnicodeTables.FLAGS)
    private val combiningClasses = Runs(UnicodeTables.COMBINING_CLASSES)
    private val decompositions = Mappings(UnicodeTables.DECOMPOSITIONS)
    private val lowercases = Mappings(UnicodeTables.LOWERCASES)

    /** Whether the character has any of these bits (UnicodeTables.SPACE ..). */
    fun has(c: Int, bits: Int) = flags.at(c) and bits != 0

    /** The class that orders marks after a letter; 0: not moved. */
    fun combiningClass(c: Int) = if (c < 0x300) 0 else combiningClasses.at(c)

    /** Canonical decomposition, in full; the character itself where it has none. */
    fun decomposed(c: Int): IntArray {
        if (c < 0x80) return intArrayOf(c)
        if (c !in 0xAC00 until 0xAC00 + 11172) return decompositions.of(c)
        val syllable = c - 0xAC00
        val tail = syllable % 28
        val two = intArrayOf(0x1100 + syllable / (21 * 28), 0x1161 + syllable / 28 % 21)
        return if (tail == 0) two else two + (0x11A7 + tail)
    }

    fun lowercase(c: Int): IntArray = lowercases.of(c)

    /** A value holds from a character on to the next entry. Written are the distances and the values. */
    private class Runs(table: Array<String>) {
        private val starts: IntArray
        private val values: IntArray

        init {
            val numbers = numbersOf(table)
            starts = IntArray(numbers.size / 2)
            values = IntArray(numbers.size / 2) { numbers[2 * it + 1] }
            var start = 0
            for (i in starts.indices) {
                start += numbers[2 * i]
                starts[i] = start
            }
        }

        fun at(c: Int): Int {
            val found = starts.binarySearch(c)
            return values[if (found >= 0) found else -found - 2]
        }
    }

    /** Some characters become others. Written are the distance to the character, how many it becomes, and which. */
    private class Mappings(table: Array<String>) {
        private val characters: IntArray
        private val becomes: Array<IntArray>

        init {
            val numbers = numbersOf(table)
            val found = Ints()
            val all = ArrayList<IntArray>()
            var place = 0
            var character = 0
            while (place < numbers.size) {
                character += numbers[place]
                val end = place + 2 + numbers[place + 1]
                found.add(character)
                all.add(numbers.copyOfRange(place + 2, end))
                place = end
            }
            characters = found.toArray()
            becomes = all.toTypedArray()
        }

        fun of(c: Int): IntArray {
            val found = characters.binarySearch(c)
            return if (found >= 0) becomes[found] else intArrayOf(c)
        }
    }

    /** Numbers with 36 digits, one blank between two. */
    private fun numbersOf(table: Array<String>): IntArray {
        val found = Ints()
        for (line in table) {
            var number = 0
            for (c in line) {
                if (c == ' ') {
                    found.add(number)
                    number = 0
                } else {
                    number = number * 36 + if (c <= '9') c - '0' else c - 'a' + 10
                }
            }
            found.add(number)
        }
        return found.toArray()
    }
}

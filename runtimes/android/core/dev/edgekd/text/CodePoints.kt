package dev.edgekd.text

/** A list of numbers that grows. */
internal class Ints(capacity: Int = 16) {
    private var numbers = IntArray(capacity)
    var size = 0
        private set

    fun add(number: Int) {
        if (size == numbers.size) numbers = numbers.copyOf(maxOf(16, size * 2))
        numbers[size++] = number
    }

    fun toArray(): IntArray = numbers.copyOf(size)
}

/** The characters of a text (code points); half of a surrogate pair, which is no character, becomes U+FFFD. */
internal fun codePointsOf(text: String): IntArray {
    val found = Ints(text.length)
    var place = 0
    while (place < text.length) {
        val c = text.codePointAt(place)
        found.add(if (c in 0xD800..0xDFFF) 0xFFFD else c)
        place += Character.charCount(c)
    }
    return found.toArray()
}

/** Where the characters (code points) of a text stand in the string, which counts in UTF-16. */
internal class Places(characters: IntArray) {
    private val places = IntArray(characters.size + 1)

    init {
        for (i in characters.indices) places[i + 1] = places[i] + Character.charCount(characters[i])
    }

    operator fun get(character: Int) = places[character]
}

/** A word, and its parts as strings. */
internal class Word(characters: IntArray) {
    val size = characters.size
    val text = String(characters, 0, size)
    private val places = Places(characters)

    fun part(start: Int, end: Int): String = text.substring(places[start], places[end])
}

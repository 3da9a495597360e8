<?php
// For PHP's built-in server: php -S 127.0.0.1:PORT router.php
$parts = explode('/', parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
$argument = $parts[2] ?? '';

function answer(int $status, string $body): void
{
    http_response_code($status);
    header('Content-Length: ' . strlen($body));
    echo $body;
}

switch ($parts[1]) {
    case 'items':
        answer(200, json_encode(['item' => $argument]));
        break;
    case 'fail':
        answer(500, "failed\n");
        break;
    case 'echo':
        answer(200, file_get_contents('php://input'));
        break;
    case 'sleep':
        usleep((int) $argument * 1000);
        answer(200, "slept\n");
        break;
    case 'big':
        answer(200, str_repeat('x', (int) $argument));
        break;
    case 'stream':
        for ($piece = 0; $piece < 5; $piece++) {
            echo "piece $piece\n";
            flush();
            usleep(1000);
        }
        break;
    default:
        answer(404, "no such page\n");
}
